"""`quantize`: by ranges and bits (recipe "paper"), or on calibration images ("default"). What runs afterwards is
*simulated* quantization.
"""

import collections
import dataclasses
import functools
import os
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from psaq_jax.checks import check_folder_path
from psaq_jax.checksums import checksum
from psaq_jax.distillation.config import DistillationConfig
from psaq_jax.errors import InputError, first
from psaq_jax.models.model import Classifier, Model, check_sound_model, exact_products, in_float32
from psaq_jax.models.preprocessing import Preprocessing
from psaq_jax.progress import Progress
from psaq_jax.quantization import clipping, exact, quantizers
from psaq_jax.quantization.default import default_params_and_sites
from psaq_jax.quantization.preparation import prepare
from psaq_jax.quantization.provenance import Provenance
from psaq_jax.quantization.recipes import DefaultRecipe, site_filter
from psaq_jax.quantization.representation import (
    QuantizedKernel,
    SiteQuantizer,
    UniformQuantizer,
    average_bits,
    dequantize_params,
)
from psaq_jax.sites import Ranges, apply_with_tap, site_names

ARRAYS = ["params", "sites"]
STATIC = [
    "module", "labels", "preprocessing", "source", "weight_bits", "activation_bits", "recipe", "kernel_bits", "options",
    "provenance", "distillations",
]  # fmt: skip


@functools.partial(jax.tree_util.register_dataclass, data_fields=ARRAYS, meta_fields=STATIC)
@dataclasses.dataclass(frozen=True, eq=False, repr=False)  # arrays have no one truth value
class QuantizedModel(Classifier):
    """A vision transformer in simulated quantization.

    Attributes:
      params: as the float model's, every Dense and convolution kernel a `QuantizedKernel`.
      sites: {site name: its quantizer}, in running order; none where activations are floats.
      weight_bits: as asked for; with mixed precision the average over all weights of kernels.
      activation_bits: None: activations in floating point.
      kernel_bits: (path of a kernel, its bits) of every kernel.
      options: the ingredients of recipe "default"; None for "paper".
      provenance: what the float model or the artefact that it came from knows of its source, and the next one will.
      distillations: the settings of every training since (`distill`), in order; none of post-training quantization.
    """

    params: dict
    sites: dict[str, SiteQuantizer]
    module: nn.Module
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    source: str
    weight_bits: int | float
    activation_bits: int | None
    recipe: str
    kernel_bits: tuple[tuple[str, int], ...]
    options: DefaultRecipe | None = None
    provenance: Provenance = Provenance()
    distillations: tuple[DistillationConfig, ...] = ()

    def __post_init__(self):
        if type(self.sites) is dict:  # which jax would sort by name
            object.__setattr__(self, "sites", collections.OrderedDict(self.sites))

    def jitted(self, pixels) -> jax.Array:
        return _forward(self.module, self.params, self.sites, pixels, self.has_exact_sums)

    def _numbers(self) -> str:
        activations = "floating-point" if self.activation_bits is None else f"{self.activation_bits}-bit"
        return f"{self.weight_bits:g}-bit weights, {activations} activations, recipe {self.recipe}, {self._execution()}"

    def _execution(self) -> str:
        return "simulated"

    def fingerprint(self) -> str:
        """As a float model's, over what all quantizers are too."""
        return checksum((self.params, self.sites), repr((self.module, self.preprocessing)))

    @property
    def has_exact_sums(self) -> bool:
        """Whether products of codes are summed exactly (`exact`): where the model runs in float32."""
        return self.module.dtype == jnp.float32


@in_float32
def quantize(
    model: Model,
    ranges: Ranges | None,
    weight_bits: int | Mapping[str, int] = 4,
    activation_bits: int | None = 8,
    recipe: str = "paper",
    images=None,
    options: DefaultRecipe | None = None,
    progress: Progress | None = None,
    folder: str | os.PathLike | None = None,
) -> QuantizedModel:
    """Quantizes weights and, at every site, activations (simulated: the products stay in float32).

    Args:
      ranges: of `calibrate` with the same recipe; every quantized site must be there. None will do where they have no
        use: with `images` of recipe "default" others are only checked, with floating-point activations not even that.
      weight_bits: 2 to 8; or mixed precision: {layer, such as "block_0/mlp/dense1": 2 to 8} of every layer with a
        kernel, as `mixed_precision.choose_bits` finds them.
      activation_bits: 2 to 8; None leaves activations in floating point.
      recipe: "paper": as the release, the first and last layer included. "default": the inputs of every matrix product,
        and `options`.
      images: for recipe "default" ("paper" has no use for them), calibration pixels [n, height, width, 3], synthesized
        or real. Everything is then chosen on them, ranges included. Without them: `ranges`, widened to hold zero, and
        weights to nearest. Or a `preparation.prepare` of this model, such pixels and these options, which calls at
        other bits share.
      options: switches of recipe "default"; None: its defaults. Without images those that need some are off.
      progress: of recipe "default", called as progress(parts of the model done, all).
      folder: where a reconstruction keeps finished blocks: the same call after being killed goes on behind them.
    Returns:
      The quantized model, with the model's own module, labels and preprocessing.
    Raises:
      InputError: impossible bits, images of another shape or not finite, a preparation of another model or other
        options, ranges that don't fit the model's sites, options for recipe "paper", which has none, or a `folder` that
        is a file.
    """
    check_sound_model(model, "quantize")
    is_wanted = site_filter(recipe)
    options = _checked_options(options, recipe, images)
    bits, wanted = bits_by_layer(model.params, weight_bits, options), []
    if activation_bits is not None:
        activation_bits = quantizers.check_bits(activation_bits, "activation_bits")
        wanted = [name for name in site_names(model.module, model.params, model.image_shape) if is_wanted(name)]
        if ranges is not None or recipe == "paper" or images is None:
            _check_ranges(ranges, wanted)
    if recipe == "paper":
        params, sites = quantize_params(model.params, bits), _paper_sites(ranges, wanted, activation_bits)
    elif images is None:
        sites = {name: clipping.uniform(*ranges[name], options.bits(name, activation_bits)) for name in wanted}
        params = quantize_params(model.params, bits)
    else:
        if folder is not None and (folder := check_folder_path("folder", folder)).is_file():
            raise InputError(f"folder is {str(folder)!r}, a file, expected the path of a folder")
        prepared = prepare(model, images, options)
        params, sites = default_params_and_sites(prepared, bits, activation_bits, progress, folder)
    mixed = isinstance(weight_bits, Mapping)
    return QuantizedModel(
        params, sites, model.module, model.labels, model.preprocessing, model.source,
        weight_bits=average_bits(bits, kernel_sizes(model.params)) if mixed else int(weight_bits),
        activation_bits=activation_bits, recipe=recipe,
        kernel_bits=tuple((f"{layer}/kernel", b) for layer, b in bits.items()), options=options,
        provenance=Provenance(stamps=model.stamps),
    )  # fmt: skip


def _checked_options(options: DefaultRecipe | None, recipe: str, images) -> DefaultRecipe | None:
    if not isinstance(options, DefaultRecipe | None):
        raise InputError(f"options are {type(options).__name__}, expected a DefaultRecipe, such as {DefaultRecipe()!r}")
    if recipe == "paper":
        if options is not None:
            raise InputError('options are of recipe "default", and the recipe is "paper"; give recipe="default"')
        return None
    options = options or DefaultRecipe()
    return options.without_images() if images is None else options


def check_same_architecture(model: Model, q: QuantizedModel, function: str) -> None:
    """Raises InputError where `q` cannot be a quantized form of the model."""
    if not isinstance(q, QuantizedModel):
        raise InputError(f"{function} takes a quantized model too, found {type(q).__name__}; quantize makes one")
    if q.module.clone(dtype=model.module.dtype) != model.module:
        raise InputError(f"{function}: the quantized model has another architecture than the float one; pass its own")


def kernel_sizes(params: dict) -> dict[str, int]:
    """{layer: how many weights its kernel has}, of every Dense and convolution layer."""
    flat = traverse_util.flatten_dict(params, sep="/")
    return {path.removesuffix("/kernel"): x.size for path, x in flat.items() if path.endswith("/kernel")}


def bits_by_layer(params: dict, weight_bits: int | Mapping, options: DefaultRecipe | None) -> dict[str, int]:
    """{layer: bits of its kernel}; a whole number is that of every layer but those that the recipe keeps at 8.

    Raises:
      InputError: impossible bits, or a mapping of other layers than the model's.
    """
    layers = kernel_sizes(params)
    if not isinstance(weight_bits, Mapping):
        bits = quantizers.check_bits(weight_bits, "weight_bits")
        return {layer: options.bits(layer, bits) if options else bits for layer in layers}
    if other := sorted(layers.keys() ^ weight_bits.keys(), key=str):
        raise InputError(f"weight_bits: layer {other[0]!r} is missing or unknown, expected the model's {len(layers)}")
    return {layer: quantizers.check_bits(weight_bits[layer], f"weight_bits of {layer}") for layer in layers}


def _paper_sites(ranges: Ranges, wanted: list[str], bits: int) -> dict[str, UniformQuantizer]:
    sites = {}
    for name in wanted:
        scale, zero_point = quantizers.activation_scale(*ranges[name], bits)
        sites[name] = UniformQuantizer(scale, zero_point, jnp.float32(bits))
    return sites


def _check_ranges(ranges: Mapping, wanted: list[str]) -> None:
    if not isinstance(ranges, Mapping):
        raise InputError(f"ranges are {type(ranges).__name__}, expected what calibrate returns with this recipe")
    missing, unknown = [n for n in wanted if n not in ranges], [n for n in ranges if n not in wanted]
    if missing or unknown:
        told = [("missing", missing), ("unknown", [str(name)[:80] for name in unknown])]
        parts = [f"{what} {first(sites)}" for what, sites in told if sites]
        raise InputError(f"the ranges do not fit the model's sites: {'; '.join(parts)}; use calibrate with this recipe")
    for name, ends in ranges.items():
        if not _is_range(ends):
            expected = "finite minimum <= maximum, and so their difference in float32"
            raise InputError(f"the range of site {name} is {str(ends)[:80]}, expected {expected}; use calibrate's")


def _is_range(ends) -> bool:
    try:
        ends = np.asarray(ends)
    except ValueError:  # of several shapes
        return False
    if ends.shape != (2,) or not any(jnp.issubdtype(ends.dtype, kind) for kind in (jnp.floating, jnp.integer)):
        return False
    with np.errstate(over="ignore", invalid="ignore"):
        low, high = ends.astype(np.float32)
        return bool(low <= high and np.isfinite(high - low))


def quantize_params(params: dict, bits: Mapping[str, int]) -> dict:
    """Every kernel of the tree, {layer: bits}, as a `QuantizedKernel`; biases, LayerNorms and tokens as they are."""
    flat = traverse_util.flatten_dict(params, sep="/")
    for layer, layer_bits in bits.items():
        flat[f"{layer}/kernel"] = QuantizedKernel(*quantizers.quantize_weights(flat[f"{layer}/kernel"], layer_bits))
    return traverse_util.unflatten_dict(flat, sep="/")


@functools.partial(jax.jit, static_argnames=("module", "has_exact_sums"))
def _forward(module, params, sites, pixels, has_exact_sums):
    if has_exact_sums:
        return exact.forward(module, params, sites, pixels)

    def tap(name, x):
        return sites[name](x) if name in sites else x

    with exact_products(module.dtype):
        return exact.sound(apply_with_tap(module, dequantize_params(params), pixels, tap), pixels)
