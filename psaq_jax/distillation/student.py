"""The student: a quantized model whose weights, scales and other parameters take gradients.

It starts as a `QuantizedModel` and ends as one: what it computes in between is what the finished model computes.
Rounding passes gradients on and clipping stops them (straight-through, Bengio et al., 2013); scales are learned with
LSQ's gradient (Esser et al., ICLR 2020), as logarithms, which is ours: they stay positive and a step is a fraction.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import traverse_util

from psaq_jax.errors import InputError
from psaq_jax.models.model import Model, exact_products
from psaq_jax.quantization.quantizers import divide
from psaq_jax.quantization.reconstruction import scaled, size
from psaq_jax.quantization.representation import LogQuantizer, QuantizedKernel, UniformQuantizer
from psaq_jax.quantization.rotation import TOKENS
from psaq_jax.quantization.transform import QuantizedModel
from psaq_jax.sites import apply_with_tap

ALTERNATIONS = 10
LEAN = 0.25  # of a code, at most; it turns at half a code, and from near there the first steps turn too many at once
FAR = 0.9  # of a kernel's size: nearer, it is the original's


@functools.partial(jax.tree_util.register_dataclass, data_fields=["scale", "bound"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class KernelQuantizer:
    """The grid of a kernel [..., o]: whole codes −bound..bound−1 times a scale per output channel [o]."""

    scale: jax.Array
    bound: jax.Array

    def codes(self, kernel):
        return jnp.clip(jnp.round(divide(kernel, self.scale)), -self.bound, self.bound - 1)

    def __call__(self, kernel):
        return self.codes(kernel) * self.scale


class Learned(NamedTuple):
    """What the student learns, {path or site: array} each."""

    kernels: dict[str, jax.Array]  # float kernels behind the codes
    kernel_scales: dict[str, jax.Array]  # [o], logarithm of the scale over the start's
    site_scales: dict[str, jax.Array]  # scalars, likewise
    floats: dict[str, jax.Array]  # biases, LayerNorms, tokens, positions


class Grids(NamedTuple):
    """What stays as the start has it, the scales being where the learned ones begin."""

    kernels: dict[str, KernelQuantizer]
    sites: dict[str, UniformQuantizer | LogQuantizer]


def start(model: Model, q: QuantizedModel) -> tuple[Grids, Learned]:
    """The student that computes what `q` computes, q being a quantized form of the model in the same bases.

    Raises:
      InputError: kernels of `q` that are not the model's.
    """
    kernel_bits = dict(q.kernel_bits)
    flat = traverse_util.flatten_dict(q.params, sep="/")
    coded = {path: leaf for path, leaf in flat.items() if isinstance(leaf, QuantizedKernel)}
    bounds = {path: jnp.float32(2.0 ** (kernel_bits[path] - 1)) for path in coded}
    grids = Grids({path: KernelQuantizer(kernel.scale, bounds[path]) for path, kernel in coded.items()}, q.sites)
    originals = traverse_util.flatten_dict(model.params, sep="/")
    scaled_originals = {path: as_scaled(originals[path], kernel) for path, kernel in coded.items()}
    check_kernels(scaled_originals, coded)
    learned = Learned(
        kernels={path: unrounded(scaled_originals[path], kernel) for path, kernel in coded.items()},
        kernel_scales={path: jnp.zeros_like(kernel.scale) for path, kernel in coded.items()},
        site_scales={name: jnp.zeros(()) for name in q.sites},
        floats={path: jnp.array(leaf) for path, leaf in flat.items() if path not in coded},
    )
    return grids, learned


def check_kernels(originals: dict[str, jax.Array], coded: dict[str, QuantizedKernel]) -> None:
    """Raises InputError where a quantized kernel is far from the original (`as_scaled`), as those of queries, keys and
    values in the bases of other images are: 0.97 of its size. The same kernels are at most 0.7 apart, at 2 bits.
    """
    errors = {path: relative_error(originals[path], kernel.dequantize()) for path, kernel in coded.items()}
    worst = max(errors, key=errors.get)
    if errors[worst] > FAR:
        raise InputError(
            f"images: found others than the quantized model was made of, or another model or version: {worst} is "
            f"{errors[worst]:.2f} of its size away from the model's in these images' bases, expected at most {FAR}; "
            f"give what it was made of, or make it anew"
        )


def relative_error(found: jax.Array, expected: jax.Array) -> float:
    return float(jnp.linalg.norm(found - expected) / jnp.maximum(jnp.linalg.norm(expected), 1e-20))


@jax.jit
def as_scaled(original: jax.Array, kernel: QuantizedKernel) -> jax.Array:
    """The original [i, o] with its rows and columns scaled to be as near to the kernel as that can be.

    Recipes scale them (folding) before they round. The factors are found by alternating least squares.
    """
    target, least = kernel.dequantize(), jnp.float32(1e-20)
    rows, columns = jnp.ones((original.shape[0], 1)), jnp.ones((1, original.shape[1]))
    for _ in range(ALTERNATIONS):
        known = original * columns
        rows = jnp.sum(target * known, 1, keepdims=True) / (jnp.sum(known**2, 1, keepdims=True) + least)
        known = original * rows
        columns = jnp.sum(target * known, 0, keepdims=True) / (jnp.sum(known**2, 0, keepdims=True) + least)
    return original * rows * columns


@jax.jit
def unrounded(original: jax.Array, kernel: QuantizedKernel) -> jax.Array:
    """The float kernel behind the codes, [i, o]: rounding it gives them, and it leans to where the original lies
    (`as_scaled`), which tells which way a weight turns at the least cost.
    """
    return jnp.clip(original / kernel.scale, kernel.codes - LEAN, kernel.codes + LEAN) * kernel.scale


def units(grids: Grids, learned: Learned) -> Learned:
    """How far Adam's step of one moves each parameter: a kernel by its channel's largest code, a scale by itself, the
    others by their leaf's root mean square, of tokens and positions without each row's mean, which LayerNorms take
    away. Copies of a model whose channels are scaled or whose tokens are lifted learn as the original does.
    """
    return Learned(
        kernels={path: grid.scale * grid.bound for path, grid in grids.kernels.items()},
        kernel_scales=dict.fromkeys(learned.kernel_scales, jnp.float32(1)),
        site_scales=dict.fromkeys(learned.site_scales, jnp.float32(1)),
        floats={path: size(centered(leaf) if path in TOKENS else leaf) for path, leaf in learned.floats.items()},
    )


def centered(rows: jax.Array) -> jax.Array:
    return rows - rows.mean(axis=-1, keepdims=True)


@jax.custom_vjp
def fake_quantize(quantizer, logarithm, x):
    """`quantizer(x)` with its scale multiplied by exp(logarithm): exactly that, and gradients for the last two.

    With m = 1 where x was rounded and 0 where it was clipped, dx̂/dx = m. As x̂(k·scale, k·x) = k·x̂(scale, x), Euler's
    theorem gives scale·dx̂/dscale = x̂ − m·x: LSQ's gradient, for uniform and logarithmic grids alike, x and x̂ being
    counted from the shift of those that have one.
    """
    return scaled(quantizer, logarithm)(x)


def _forward(quantizer, logarithm, x):
    moved = scaled(quantizer, logarithm)
    y = moved(x)
    return y, (quantizer, logarithm, x, y, _rounded(moved, x.astype(jnp.float32)))


def _backward(residuals, cotangent):
    quantizer, logarithm, x, y, rounded = residuals
    origin = -getattr(quantizer, "shift", 0.0)
    error = (y.astype(jnp.float32) - origin) - jnp.where(rounded, x.astype(jnp.float32) - origin, 0)
    axes = tuple(range(x.ndim - logarithm.ndim))
    to_logarithm = jnp.sum(cotangent.astype(jnp.float32) * error, axis=axes)
    return jax.tree.map(jnp.zeros_like, quantizer), to_logarithm, jnp.where(rounded, cotangent, 0)


fake_quantize.defvjp(_forward, _backward)


def _rounded(quantizer, x):
    """Where x is within half a code of the grid, and so not clipped."""
    if isinstance(quantizer, KernelQuantizer):
        return jnp.abs(x / quantizer.scale + 0.5) <= quantizer.bound
    if isinstance(quantizer, LogQuantizer):  # what is too small for a code counts as rounded to zero
        return x + quantizer.shift <= quantizer.scale * jnp.exp2(0.5 / quantizer.steps)
    codes = 2.0**quantizer.bits
    return jnp.abs(x / quantizer.scale + quantizer.zero_point - (codes - 1) / 2) <= codes / 2


def student_pass(module, grids: Grids, learned: Learned, pixels, keep=lambda name: False) -> tuple[jax.Array, dict]:
    """Normalised pixels [b, h, w, 3] -> (logits [b, classes], {site: tensor} of the sites that `keep` names)."""
    flat, kept = dict(learned.floats), {}
    for path, grid in grids.kernels.items():
        flat[path] = fake_quantize(grid, learned.kernel_scales[path], learned.kernels[path])

    def tap(name, x):
        y = fake_quantize(grids.sites[name], learned.site_scales[name], x) if name in grids.sites else x
        if keep(name):
            kept[name] = y
        return y

    with exact_products(module.dtype):
        return apply_with_tap(module, traverse_util.unflatten_dict(flat, sep="/"), pixels, tap), kept


def finish(q: QuantizedModel, grids: Grids, learned: Learned) -> QuantizedModel:
    """The model that the student has become: integer kernels, and quantizers with their learned scales."""
    flat = dict(learned.floats)
    for path, grid in grids.kernels.items():
        moved = scaled(grid, learned.kernel_scales[path])
        flat[path] = QuantizedKernel(moved.codes(learned.kernels[path]).astype(jnp.int8), moved.scale)
    sites = {name: scaled(grids.sites[name], learned.site_scales[name]) for name in q.sites}  # in running order
    return dataclasses.replace(q, params=traverse_util.unflatten_dict(flat, sep="/"), sites=sites)
