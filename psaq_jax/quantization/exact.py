"""Quantized forward passes with exact sums: products of codes, which are whole numbers, scaled afterwards.

With weights w = W·t (codes W signed, one scale t an output channel) and activations x = X·s (X the codes less the zero
point), Σ x·w = s·t·Σ X·W. Both executions of a quantized model are this one program, but for how a sum of codes is
made, in float32 (simulated) or on integers (`integer`). Either is exact, in any order, on any device and in any batch.
Multiplying x and w themselves, as the release does, rounds every term in an order that no two libraries share: then a
last bit turns a rounding to codes around now and then, and what comes after makes more of it.
"""

import functools
from collections.abc import Callable, Collection

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util
from jax.experimental.xla_metadata import set_xla_metadata

from psaq_jax.models.layers import Product
from psaq_jax.models.model import exact_products
from psaq_jax.quantization.grids import factor_sites
from psaq_jax.quantization.representation import QuantizedKernel, UniformQuantizer, dequantize_params
from psaq_jax.sites import See, Site, intercepted

LARGEST = 2**24  # float32 holds every whole number up to it
PARTS = 127  # sums of so many parts, each at most LARGEST, fit int32

# (equation, X, W or Y, grid of X, grid of Y or None for W) -> the sums, whole numbers rounded to float32
Sums = Callable[[str, jax.Array, jax.Array, UniformQuantizer, UniformQuantizer | None], jax.Array]


def float_sums(equation: str, x, y, of_x=None, of_y=None) -> jax.Array:
    """einsum(equation, x, y) of codes, in float32; the equation contracts the last axis of x.

    As many terms at once as float32 surely sums exactly; these sums are whole numbers, added in int32, and from
    65,000 terms on (of two activations 32,767) in two words of it.
    """
    axis, terms, step = contracted_axis(equation), x.shape[-1], LARGEST // (255 * (255 if of_y else 128))
    parts = []
    for start in range(0, terms, step):
        end = min(start + step, terms)
        b = jax.lax.slice_in_dim(y, start, end, axis=axis)
        parts.append(jnp.einsum(equation, x[..., start:end], b.astype(jnp.float32)))
    if len(parts) == 1:
        return parts[0]
    parts = [part.astype(jnp.int32) for part in parts]
    if len(parts) <= PARTS:
        return sum(parts).astype(jnp.float32)
    high, low = sum(part >> 12 for part in parts), sum(part & 4095 for part in parts)
    return high.astype(jnp.float32) * 4096 + low.astype(jnp.float32)  # both exact: the sum alone rounds


def contracted_axis(equation: str) -> int:
    """Of the second factor: the axis that is the first one's last."""
    first, second = equation.partition("->")[0].split(",")
    return second.index(first[-1])


def forward(module, params: dict, sites: dict, pixels, sums: Sums = float_sums, integers: Collection[str] = ()):
    """The quantized model's logits, NaN for an image that is not finite; traceable.

    Args:
      params: kernels as `QuantizedKernel`; sites: {site: quantizer}.
      sums: makes the sums of codes of the products named by `integers`; all others are of `float_sums`.
    """
    see = _exact(params, sites, lambda name: sums if name in integers else float_sums)
    with exact_products(jnp.float32), intercepted(see):
        logits = module.apply({"params": dequantize_params(params)}, pixels)
    return sound(logits, pixels)


def sound(logits, pixels) -> jax.Array:
    """The logits [b, classes], NaN where an image is not finite: a quantizer would give it some code all the same."""
    return jnp.where(jnp.isfinite(pixels).all((1, 2, 3))[:, None], logits, jnp.nan)


def _exact(params: dict, sites: dict, sums_of: Callable[[str], Sums]) -> See:
    """Quantizes sites; products of two uniform grids are exact, the others as they are."""
    layers, running = traverse_util.flatten_dict(params, sep="/"), []

    def see(name, module, args, run):
        if isinstance(module, Site):
            running.append(name)
            return sites[name](args[0]) if name in sites else args[0]
        if not isinstance(module, nn.Dense | Product):
            return run()
        grids = [sites.get(site) for site in factor_sites(name, running, sites)]
        kernel, bias = layers.get(f"{name}/kernel"), layers.get(f"{name}/bias")
        if not all(isinstance(grid, UniformQuantizer) for grid in grids):
            return run()
        if isinstance(module, Product):
            return module.scale * product(sums_of(name), module.equation, *args, *grids)
        if not isinstance(kernel, QuantizedKernel):
            return run()
        return dense(sums_of(name), *args, *grids, kernel, bias)

    return see


def dense(sums: Sums, x, grid: UniformQuantizer, kernel: QuantizedKernel, bias=None) -> jax.Array:
    """x [..., i] float32 on a grid, codes [i, o] -> x @ kernel + bias, [..., o] float32."""
    y = apart(sums, "...i,io->...o", whole_codes(x, grid), kernel.codes, grid, None) * (grid.scale * kernel.scale)
    return y if bias is None else y + bias


def product(sums: Sums, equation: str, x, y, of_x: UniformQuantizer, of_y: UniformQuantizer) -> jax.Array:
    """einsum(equation, x, y) of activations, each on its grid, float32; the equation contracts the last axis of x."""
    codes = whole_codes(x, of_x), whole_codes(y, of_y)
    return apart(sums, equation, *codes, of_x, of_y) * (of_x.scale * of_y.scale)


def whole_codes(x, grid: UniformQuantizer) -> jax.Array:
    """Values on a grid -> their codes less the zero point, whole numbers in float32."""
    # On the grid, x/scale is whole to within 1e-4: a product with the reciprocal rounds to the same code.
    return jnp.round(x * (1 / grid.scale))


def apart(sums: Sums, equation: str, *arguments) -> jax.Array:
    """sums(equation, *arguments); on a CPU as a call that XLA keeps.

    Inlined, float and integer sums would be fused in different ways with what lies between the products (LayerNorm,
    softmax), which would then round apart. Called, they are all that two executions differ in: the rest is one program,
    compiled once for each, and equal bit for bit. Compilers for accelerators know no kept calls; there barriers hold
    back fusion, and equality to the bit is not promised.
    """
    sums = functools.partial(sums, equation)

    def kept(*arguments):
        with set_xla_metadata(inlineable="false"):
            return jax.jit(sums)(*arguments)

    def fenced(*arguments):
        return jax.lax.optimization_barrier(sums(*jax.lax.optimization_barrier(arguments)))

    return jax.lax.platform_dependent(*arguments, cpu=kept, default=fenced)
