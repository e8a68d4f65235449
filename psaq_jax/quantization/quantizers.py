"""Uniform quantizers: scale, zero point, round, clamp (PSAQ-ViT's release, `models/quantization_utils`).

Integer codes of weights are signed, −2^(b−1)..2^(b−1)−1; those of activations unsigned, 0..2^b−1. Rounding is half to
even. Pure functions of arrays; no Flax. Bits may be traced, so that another bit-width compiles nothing anew.
"""

import jax
import jax.numpy as jnp
import numpy as np

from psaq_jax.errors import InputError

LEAST_SCALE = np.finfo(np.float32).eps


def divide(a: jax.Array, b: jax.Array) -> jax.Array:
    """a / b, correctly rounded on a CPU; on GPUs XLA's division may be off in its last bit.

    XLA turns a division by a broadcast into a product with the reciprocal, which is another number one time in ten,
    and the largest weight of every channel lies on an exact tie where that decides a whole code.
    """
    return jax.lax.div(a, jax.lax.optimization_barrier(jnp.broadcast_to(b, a.shape).astype(a.dtype)))


def weight_scale(w: jax.Array, bits) -> jax.Array:
    """One scale per output channel: [channels] float32, max(|min|, |max|) / ((2^b − 1)/2), at least float32's eps.

    Args:
      w: [..., output channels], a Dense kernel or a convolution's in HWIO order.
    """
    w = jnp.asarray(w, jnp.float32)
    half = (2.0 ** jnp.asarray(bits, jnp.float32) - 1) / 2
    return jnp.maximum(divide(jnp.max(jnp.abs(w), axis=tuple(range(w.ndim - 1))), half), LEAST_SCALE)


@jax.jit
def quantize_weights(w: jax.Array, bits) -> tuple[jax.Array, jax.Array]:
    """Symmetric, per output channel: (codes int8 [..., channels], scale float32 [channels]).

    w is codes·scale to within half a scale, one scale at the largest positive weight. Bits: 2 to 8.
    """
    codes, scale = _weight_codes(w, bits)
    return codes.astype(jnp.int8), scale


def _weight_codes(w, bits):
    scale = weight_scale(w, bits)
    bound = 2.0 ** (jnp.asarray(bits, jnp.float32) - 1)
    return jnp.clip(jnp.round(divide(jnp.asarray(w, jnp.float32), scale)), -bound, bound - 1), scale


@jax.jit
def fake_quantize_weights(w: jax.Array, bits) -> jax.Array:
    """Weights [..., output channels] rounded to their `bits`-bit grid, as float32 of the same shape; any bits to 24."""
    codes, scale = _weight_codes(w, bits)
    return codes * scale


@jax.jit
def activation_scale(minimum, maximum, bits) -> tuple[jax.Array, jax.Array]:
    """Asymmetric, per tensor: (scale, zero point), float32 scalars; the zero point is a whole number in 0..2^b−1.

    A range that leaves out zero saturates, because the zero point is clamped: the paper's flaw, kept.
    """
    minimum, maximum = jnp.asarray(minimum, jnp.float32), jnp.asarray(maximum, jnp.float32)
    levels = 2.0 ** jnp.asarray(bits, jnp.float32) - 1
    scale = jnp.maximum(divide(maximum - minimum, levels), LEAST_SCALE)
    return scale, jnp.clip(-jnp.round(divide(minimum, scale)), 0, levels)


def quantize_activations(x: jax.Array, scale: jax.Array, zero_point: jax.Array, bits) -> jax.Array:
    """Integer codes 0..2^b−1 of x, as float32 (whole numbers, exact)."""
    levels = 2.0 ** jnp.asarray(bits, jnp.float32) - 1
    return jnp.clip(jnp.round(divide(jnp.asarray(x, jnp.float32), scale) + zero_point), 0, levels)


def fake_quantize_activations(x: jax.Array, minimum, maximum, bits) -> jax.Array:
    """x rounded to the `bits`-bit grid of the range [minimum, maximum], as float32 of the same shape."""
    x = jnp.asarray(x, jnp.float32)
    scale, zero_point = activation_scale(minimum, maximum, bits)
    return (quantize_activations(x, scale, zero_point, bits) - zero_point) * scale


def check_bits(bits: int, name: str) -> int:
    """Returns `bits` if it is a whole number from 2 to 8.

    Raises:
      InputError: naming the field.
    """
    if isinstance(bits, bool) or not isinstance(bits, int | np.integer) or not 2 <= bits <= 8:
        raise InputError(f"{name} is {bits!r}, expected a whole number of bits from 2 to 8")
    return int(bits)
