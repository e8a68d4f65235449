"""`SynthesisConfig`: every number of the synthesis, with the paper's values as defaults."""

import dataclasses

from psaq_jax.checks import check_choice, check_types, check_weight, check_whole
from psaq_jax.errors import InputError
from psaq_jax.synthesis.entropy import BANDWIDTH

RECIPES = ("paper", "default")
PARAMETRIZATIONS = ("pixels", "frequencies")
FUSED_ATTENTIONS = ("cudnn", "xla")
# Far beyond use, and within what counts of iterations and of groups, and random numbers, hold.
MOST = {"num_images": 10**9, "group_size": 10**6, "iterations": 10**6, "rounds": 10**3}
LARGEST_JITTER, LARGEST_RATE, LARGEST_VARIATION = 10**4, 10**3, 10**9


@dataclasses.dataclass(frozen=True)
class SynthesisConfig:
    """How images are synthesized. The defaults are the paper's.

    Attributes:
      num_images: how many images in all; groups must divide it.
      group_size: images that are optimized together: they share the similarity grid, jitter and variation target.
      iterations: optimizer steps in all.
      rounds: the iterations are shared out among these; the learning rate restarts with each, jitter doubles.
      learning_rate: Adam's peak rate; None: 0.20, for Swin 0.25, in normalised pixels; 0.10 of frequencies.
      jitter: largest roll in pixels at 224 px, one number a round; scaled with the image.
      total_variation: bounds of the uniform target, for 32 images of 224x224; scaled with sqrt(batch·pixels).
      total_variation_weight, cross_entropy_weight: of these terms; the entropy's weight is 1.
      bandwidth: of the kernels in the density of the similarities. The paper's gives few pairs of patches a gradient
        (`patch_similarity_entropy`); docs/accuracy.md shows what 0.05 does, which depends on the model.
      recipe: "paper", or "default", which clips to the model's own pixel range, leaves every special token out of
        the similarity (the paper: ImageNet's range, and token 0), and takes it where values and projections are
        balanced (`balancing.py`).
      parametrization: what Adam moves: "pixels" or "frequencies", in the measure of natural images (`frequencies.py`,
        docs/experiments.md); None becomes pixels for recipe "paper", which takes nothing else, and frequencies for
        "default".
      fused_attention: None, or how a ViT's attention is computed in one operation (`jax.nn.dot_product_attention`):
        "cudnn" (flash attention on NVIDIA's GPUs, of bfloat16) or "xla". It is tried before the first iteration.
    """

    num_images: int = 32
    group_size: int = 32
    iterations: int = 1000
    rounds: int = 2
    learning_rate: float | None = None
    jitter: tuple[float, ...] = (15.0, 30.0)
    total_variation: tuple[float, float] = (2500.0, 3000.0)
    total_variation_weight: float = 0.05
    cross_entropy_weight: float = 1.0
    bandwidth: float = BANDWIDTH
    recipe: str = "paper"
    parametrization: str | None = None
    fused_attention: str | None = None

    def __post_init__(self):
        check_types("synthesis", self)
        object.__setattr__(self, "jitter", tuple(self.jitter))
        object.__setattr__(self, "total_variation", tuple(self.total_variation))
        for name, most in MOST.items():
            check_whole(f"synthesis.{name}", getattr(self, name), 1, most)
        if self.num_images % self.group_size:
            raise InputError(
                f"synthesis.num_images is {self.num_images}, which groups of synthesis.group_size = {self.group_size} "
                f"don't divide; take {max(1, self.num_images // self.group_size) * self.group_size} images, or a "
                "group_size that divides them"
            )
        for name in ("total_variation_weight", "cross_entropy_weight"):
            check_weight(f"synthesis.{name}", getattr(self, name))
        if self.learning_rate is not None and not 0 < self.learning_rate <= LARGEST_RATE:
            expected = f"a positive number up to {LARGEST_RATE}"
            raise InputError(f"synthesis.learning_rate is {self.learning_rate!r}, expected {expected}")
        if not 1e-3 <= self.bandwidth <= 1:
            raise InputError(f"synthesis.bandwidth is {self.bandwidth!r}, expected 0.001 to 1 (the paper's is 0.01)")
        if len(self.jitter) != self.rounds or not all(0 <= x <= LARGEST_JITTER for x in self.jitter):
            expected = f"{self.rounds} numbers from 0 to {LARGEST_JITTER}, one a round"
            raise InputError(f"synthesis.jitter is {self.jitter!r}, expected {expected}")
        ends = self.total_variation
        if len(ends) != 2 or not 0 <= ends[0] <= ends[1] <= LARGEST_VARIATION:
            expected = f"(least, greatest), 0 to {LARGEST_VARIATION}"
            raise InputError(f"synthesis.total_variation is {self.total_variation!r}, expected {expected}")
        check_choice("synthesis.recipe", self.recipe, RECIPES)
        if self.parametrization is None:
            object.__setattr__(self, "parametrization", "pixels" if self.recipe == "paper" else "frequencies")
        check_choice("synthesis.parametrization", self.parametrization, PARAMETRIZATIONS)
        if self.fused_attention is not None:
            check_choice("synthesis.fused_attention", self.fused_attention, FUSED_ATTENTIONS)
        if self.recipe == "paper" and self.parametrization != "pixels":
            found = f"synthesis.parametrization is {self.parametrization!r}, and synthesis.recipe 'paper'"
            raise InputError(f"{found}, which moves pixels; take recipe 'default', or parametrization 'pixels'")

    @property
    def groups(self) -> int:
        return self.num_images // self.group_size

    @property
    def round_length(self) -> int:
        """Iterations in a round; the last rounds have fewer, or none, where the rounds don't divide the iterations."""
        return -(-self.iterations // self.rounds)

    @property
    def warmup(self) -> int:
        """Iterations of linear warm-up in a round: a fifth."""
        return self.round_length // 5
