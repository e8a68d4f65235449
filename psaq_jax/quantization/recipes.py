"""Which sites a recipe quantizes, and the switches of recipe "default"."""

import dataclasses
import re
from collections.abc import Callable

from psaq_jax.checks import LARGEST_WEIGHT, check_choice, check_types, check_whole
from psaq_jax.errors import InputError

RECIPES = ("paper", "default")

# Sites of the models that the paper leaves in floating point: softmax outputs, and q, k, v, which share qkv's range.
NOT_IN_PAPER = frozenset({"query", "key", "value", "attention_probabilities"})

# Recipe "default": the inputs of every matrix product. A merging's is "merging/norm_output".
FIRST_AND_LAST = frozenset({"input", "head_input", "distillation_head_input"})
IN_DEFAULT = FIRST_AND_LAST | {
    "norm1_output", "query", "key", "attention_probabilities", "value", "attention_output", "norm2_output",
    "activation_output",
}  # fmt: skip
MERGING = "merging/norm_output"
LOGARITHMIC = ("attention_probabilities", "activation_output")  # the sites that it may give logarithmic grids
LONGEST_NAME = 200  # of a recipe; names of files hold 255 letters

# "default-gptq" is recipe "default" without that ingredient, "default+learn_rounding" with one that it leaves out.
WITHOUT = {
    "plain_grounds": False, "close_ups": False, "first_last_8bit": False, "rotate": False, "fold_norms": False,
    "fold_attention": False, "fold_activations": False, "folding_strength": 1.0, "search_ranges": False,
    "token_importance": False, "coverage": ((1.0, 1.0),), "softmax": "uniform", "gelu": "uniform", "gptq": False,
    "coordinate_descent": False, "two_sided": False, "search_weight_scales": False, "bias_correction": False,
    "bases": False, "reconstruct": False, "learn_scales": False, "learn_rounding": False,
}  # fmt: skip
WITH = {"bases": True, "reconstruct": True, "learn_scales": True, "learn_rounding": True}
# What records that are older than a switch mean; every new one stands here.
ADDED = {
    "token_importance": False, "close_ups": False, "coordinate_descent": False, "two_sided": False,
    "learn_scales": True, "rotate": False, "bases": False,
}  # fmt: skip

SOFTMAX = ("searched", "log_sqrt2", "log2", "uniform")
GELU = ("searched", "uniform")


def site_filter(recipe: str) -> Callable[[str], bool]:
    """Whether the recipe quantizes the site of a given name.

    Raises:
      InputError: an unknown recipe.
    """
    check_choice("quantization.recipe", recipe, RECIPES)
    if recipe == "default":
        return lambda name: name.rpartition("/")[2] in IN_DEFAULT or name.endswith(MERGING)
    return lambda name: name.rpartition("/")[2] not in NOT_IN_PAPER


@dataclasses.dataclass(frozen=True)
class DefaultRecipe:
    """The ingredients of recipe "default", each with its switch. Frozen and hashable.

    Attributes:
      plain_grounds: every calibration image counts once more, shrunk on a plain ground (`views`).
      close_ups: and in the second moments that kernels are rounded by twice more, a part of it enlarged (`views`).
      first_last_8bit: patch embedding and heads keep 8-bit weights and inputs, as in RepQ-ViT and its successors.
      rotate: the residual stream (a Swin transformer's from its second stage on) is rotated, so that no channel is
        larger than the others (`rotation`); not where qkv has no bias.
      bases: that stream turned on, and each head's queries, keys and values in bases of their own, by what errors in
        their channels cost (`bases`); None: where activations have at most 4 bits or no more than weights; True; False.
      fold_norms: per-channel scales and shifts at LayerNorm outputs, folded into LayerNorm and the next layer.
      fold_attention: the same for query with key, and for value with the attention output.
      fold_activations: at 8 bits, scales for the channels of GELU outputs, kept as a product by channel.
      folding_strength: 1: channels get equal ranges; less: SmoothQuant's compromise with the next weights' ranges;
        None: searched layer by layer.
      search_ranges: choose ranges by least squared error; off: minimum and maximum, a uniform grid for GELU outputs,
        and tokens that all count alike.
      token_importance: in that search errors count by how much the logits move with their token (`importance`).
      coverage: the search also counts activations stretched by these factors, for what calibration images fail to
        excite: ((factor, weight), ...). Ranges then widen where bits are plenty and hardly where they are few.
      softmax: grid of the softmax outputs: one of SOFTMAX; "searched" takes the best of all.
      gelu: grid of the GELU outputs below 8 bits: "searched" takes a uniform or a shifted logarithmic one, which is
        not for integer products; "uniform".
      gptq: weights rounded with second-order information; off: to nearest.
      coordinate_descent: then each code and scale once more, to what is best while the others stay.
      two_sided: then, in blocks and below 8 bits, codes anew, by what combinations of outputs do to the logits too
        (`two_sided`, `output_moments`).
      damping: of these three's Hessian, as a part of its mean diagonal; ten times what is usual with real images,
        because synthesized ones know the inputs' second moments only roughly.
      search_weight_scales: weight scales by least weighted squared error; off: the largest weight.
      bias_correction: biases make up for the mean error of each layer's output.
      reconstruct: None: where weights have at most 3 bits or activations at most 4, and with learn_scales=True or
        learn_rounding; True; False.
      learn_scales: whether reconstruction also learns the activations' scales; None: of those with more than 4 bits.
        With 4 they fit the calibration images, which helps where these are like what will be seen.
      learn_rounding: reconstruction also learns which weights are rounded up; for many images.
      reconstruction_steps, reconstruction_batch: Adam steps of a block, and images a step.
      seed: of all that is random in the recipe: rotations, views, reconstruction, and the combinations of the logits by
        which token importance and the outputs' moments are estimated. No job's own seed moves it.
    """

    plain_grounds: bool = True
    close_ups: bool = True
    first_last_8bit: bool = True
    rotate: bool = True
    bases: bool | None = None
    fold_norms: bool = True
    fold_attention: bool = True
    fold_activations: bool = True
    folding_strength: float | None = None
    search_ranges: bool = True
    token_importance: bool = True
    coverage: tuple[tuple[float, float], ...] = ((1.0, 1.0), (1.5, 0.1))
    softmax: str = "searched"
    gelu: str = "searched"
    gptq: bool = True
    coordinate_descent: bool = True
    two_sided: bool = True
    damping: float = 0.1
    search_weight_scales: bool = True
    bias_correction: bool = True
    reconstruct: bool | None = None
    learn_scales: bool | None = None
    learn_rounding: bool = False
    reconstruction_steps: int = 150
    reconstruction_batch: int = 8
    seed: int = 0

    def __post_init__(self):
        check_types("quantization.options", self)
        object.__setattr__(self, "coverage", tuple(tuple(map(float, pair)) for pair in self.coverage))
        check_choice("quantization.options.softmax", self.softmax, SOFTMAX)
        check_choice("quantization.options.gelu", self.gelu, GELU)
        if self.folding_strength is not None and not 0 <= self.folding_strength <= 1:
            raise InputError(
                f"quantization.options.folding_strength is {self.folding_strength!r}, expected 0 to 1, or None"
            )
        if not 0.01 <= self.damping <= LARGEST_WEIGHT:  # with less, float32 can't invert moments of few images
            expected = f"a number from 0.01 to {LARGEST_WEIGHT}"
            raise InputError(f"quantization.options.damping is {self.damping!r}, expected {expected}")
        if not self.coverage or not all(0 < x <= LARGEST_WEIGHT for pair in self.coverage for x in pair):
            pairs = f"pairs of positive numbers up to {LARGEST_WEIGHT}, (factor, weight)"
            raise InputError(f"quantization.options.coverage is {self.coverage!r}, expected {pairs}")
        for name, least in (("reconstruction_steps", 1), ("reconstruction_batch", 1), ("seed", 0)):
            check_whole(f"quantization.options.{name}", getattr(self, name), least, 2**31 - 1)

    def without_images(self) -> "DefaultRecipe":
        """What is left of the ingredients where there are no images to choose anything on."""
        return dataclasses.replace(self, **(WITHOUT | {"first_last_8bit": self.first_last_8bit}))

    def wants_bases(self, weight_bits: int, activation_bits: int | None) -> bool:
        """Where the options leave it open: not where weights are what loses most (docs/experiments.md)."""
        return (activation_bits or 32) <= max(weight_bits, 4) if self.bases is None else self.bases

    def bits(self, name: str, bits: int) -> int:
        """The bits of a site or layer of that name where the others have `bits`."""
        ends = FIRST_AND_LAST | {"patch_embedding", "head", "distillation_head"}
        return max(bits, 8) if self.first_last_8bit and name.rpartition("/")[2] in ends else bits


def read_recipe(name: str, options: DefaultRecipe | None = None) -> tuple[str, DefaultRecipe | None]:
    """("paper", None), or ("default", its options): "default-gptq+reconstruct" changes ingredients of `options`.

    Raises:
      InputError: an unknown recipe or ingredient.
    """
    if len(name) > LONGEST_NAME:
        found = f"quantization.recipe is {len(name)} letters long, expected at most {LONGEST_NAME}, as it names files"
        raise InputError(f"{found}; change the recipe's ingredients by quantization.options")
    base, *changes = re.split(r"(?=[+-])", name)
    if base not in RECIPES:
        raise InputError(f"quantization.recipe is {name!r}, known are {', '.join(RECIPES)}")
    if base == "paper" and changes:
        raise InputError(f"quantization.recipe is {name!r}; recipe 'paper' has no ingredients to change")
    if base == "paper":
        return base, None
    changed = {}
    for change in changes:
        known = WITH if change[0] == "+" else WITHOUT
        if change[1:] not in known:
            raise InputError(f"quantization.recipe {name!r}: {change!r} is none of {', '.join(known)}")
        if change[1:] in changed:
            raise InputError(f"quantization.recipe {name!r} names {change[1:]} twice, expected once")
        changed[change[1:]] = known[change[1:]]
    return base, dataclasses.replace(options or DefaultRecipe(), **changed)
