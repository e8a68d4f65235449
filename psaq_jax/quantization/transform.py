"""`quantize`: a pure function of parameters, ranges and bits. What runs afterwards is *simulated* quantization."""

import dataclasses
import functools
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from psaq_jax.errors import InputError
from psaq_jax.models.model import Model, exact_products
from psaq_jax.models.preprocessing import Preprocessing
from psaq_jax.quantization import quantizers
from psaq_jax.quantization.calibration import check_pixels
from psaq_jax.quantization.default import default_params_and_sites, without_images
from psaq_jax.quantization.recipes import DefaultRecipe, site_filter
from psaq_jax.quantization.representation import QuantizedKernel, SiteQuantizer, UniformQuantizer
from psaq_jax.sites import Ranges, apply_with_tap, site_names


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["params", "sites"],
    meta_fields=["module", "labels", "preprocessing", "source", "weight_bits", "activation_bits", "recipe", "options"],
)
@dataclasses.dataclass(frozen=True)
class QuantizedModel:
    """A vision transformer in simulated quantization.

    Attributes:
      params: as the float model's, every Dense and convolution kernel a `QuantizedKernel`.
      sites: {site name: its quantizer}, in running order.
      options: the ingredients of recipe "default"; None for "paper".
    """

    params: dict
    sites: dict[str, SiteQuantizer]
    module: nn.Module
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    source: str
    weight_bits: int
    activation_bits: int
    recipe: str
    options: DefaultRecipe | None = None

    def __call__(self, pixels) -> jax.Array:
        """Normalised pixels [b, h, w, 3] float32 -> logits [b, classes] float32, jitted."""
        return _forward(self.module, self.params, self.sites, jnp.asarray(pixels, jnp.float32))

    def preprocess(self, images):
        """uint8 [n, h, w, 3] or a list of PIL images -> normalised pixels [n, height, width, 3] float32."""
        return self.preprocessing(images)

    @property
    def image_size(self) -> tuple[int, int]:
        return self.module.image_size

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return (*self.image_size, 3)

    @property
    def classes(self) -> int:
        return self.module.classes


def quantize(
    model: Model,
    ranges: Ranges,
    weight_bits: int = 4,
    activation_bits: int = 8,
    recipe: str = "paper",
    images=None,
    options: DefaultRecipe | None = None,
) -> QuantizedModel:
    """Quantizes weights and, at every site, activations (simulated: the products stay in float32).

    Args:
      ranges: of `calibrate` with the same recipe; every quantized site must be there.
      weight_bits, activation_bits: 2 to 8.
      recipe: "paper": DESIGN §6, the first and last layer included. "default": the inputs of every matrix product,
        and `options`.
      images: for recipe "default", calibration pixels [n, height, width, 3], synthesized or real. Everything is then
        chosen on them, ranges included. Without them: `ranges`, widened to hold zero, and weights to nearest.
      options: switches of recipe "default"; None: its defaults.
    Raises:
      InputError: impossible bits, images of another shape, or ranges that don't fit the model's sites.
    """
    quantizers.check_bits(weight_bits, "weight_bits")
    quantizers.check_bits(activation_bits, "activation_bits")
    is_wanted = site_filter(model.module, recipe)
    wanted = [name for name in site_names(model.module, model.params, model.image_shape) if is_wanted(name)]
    _check_ranges(ranges, wanted)
    if recipe == "paper":
        options = None
        params, sites = quantize_params(model.params, weight_bits), _paper_sites(ranges, wanted, activation_bits)
    else:
        options = options or DefaultRecipe()
        if images is None:
            params, sites = without_images(model, ranges, wanted, weight_bits, activation_bits, options)
        else:
            images = check_pixels(model, images)
            params, sites = default_params_and_sites(model, weight_bits, activation_bits, images, options)
    return QuantizedModel(
        params, sites, model.module, model.labels, model.preprocessing, model.source, weight_bits, activation_bits,
        recipe, options,
    )  # fmt: skip


def _paper_sites(ranges: Ranges, wanted: list[str], bits: int) -> dict[str, UniformQuantizer]:
    sites = {}
    for name in wanted:
        scale, zero_point = _activation_scale(*ranges[name], bits)
        sites[name] = UniformQuantizer(scale, zero_point, jnp.float32(bits))
    return sites


def _check_ranges(ranges: Mapping, wanted: list[str]) -> None:
    missing, unknown = [n for n in wanted if n not in ranges], [n for n in ranges if n not in wanted]
    if missing or unknown:
        parts = [f"missing {', '.join(missing)}"] * bool(missing) + [f"unknown {', '.join(unknown)}"] * bool(unknown)
        raise InputError(f"the ranges do not fit the model's sites: {'; '.join(parts)}; use calibrate with this recipe")
    for name, (low, high) in ranges.items():
        if not (np.isfinite(low) and np.isfinite(high) and low <= high):
            raise InputError(f"the range of site {name} is ({low}, {high}), expected finite minimum <= maximum")


def quantize_params(params: dict, bits: int) -> dict:
    """Every kernel of the tree as a `QuantizedKernel`; biases, LayerNorms and tokens as they are."""
    flat = traverse_util.flatten_dict(params, sep="/")
    for path, value in flat.items():
        if path.rpartition("/")[2] == "kernel":
            flat[path] = QuantizedKernel(*_quantize_weights(value, bits))
    return traverse_util.unflatten_dict(flat, sep="/")


def dequantize_params(params: dict) -> dict:
    """The tree with every `QuantizedKernel` as the float32 array that it stands for."""

    def is_kernel(x):
        return isinstance(x, QuantizedKernel)

    return jax.tree.map(lambda x: x.dequantize() if is_kernel(x) else x, params, is_leaf=is_kernel)


_quantize_weights = jax.jit(quantizers.quantize_weights)
_activation_scale = jax.jit(quantizers.activation_scale)


@functools.partial(jax.jit, static_argnames="module")
def _forward(module, params, sites, pixels):
    def tap(name, x):
        return sites[name](x) if name in sites else x

    with exact_products(module.dtype):
        return apply_with_tap(module, dequantize_params(params), pixels, tap)
