"""Ranges and grids that minimise the squared error, from histograms. Pure functions of arrays; zero is always inside.

The error counts the activations as they are and stretched (`coverage`), because calibration images that were never
real fail to excite what real ones do: where bits are plenty the range that wins is wide, where they are few it clips.
Shapes: c channels, k bins, f candidates for each end of the range.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from psaq_jax.quantization.quantizers import activation_scale
from psaq_jax.quantization.representation import LogQuantizer, SiteQuantizer, UniformQuantizer

FACTORS = np.concatenate([np.linspace(0.2, 1.0, 17), [1.1, 1.25, 1.5, 1.75, 2.0]]).astype(np.float32)
STEPS = {"log2": (1,), "log_sqrt2": (2,), "searched": (1, 2, 3, 4, 6, 8, 12, 16, 24), "uniform": ()}
OCTAVES = 32  # of the histogram of logarithms


@functools.partial(jax.jit, static_argnames="coverage")
def channel_ranges(counts, centers, low, high, bits, coverage):
    """Per-channel ranges of least squared error, about the middle of what was seen; they need not hold zero.

    Rounding inside a range costs its step²/12, what lies beyond costs its distance squared (Banner et al., NeurIPS
    2019, with the histogram in the place of the analytic density).

    Args:
      counts, centers: [c, k] histogram of each channel; low, high: [c] extremes.
    Returns:
      (low [c], high [c]).
    """
    middle = jnp.sum(counts * centers, 1) / jnp.maximum(jnp.sum(counts, 1), 1e-30)
    middle = jnp.clip(middle, low, high)
    lows = middle[:, None] + (low - middle)[:, None] * FACTORS  # [c, f]
    highs = middle[:, None] + (high - middle)[:, None] * FACTORS
    mass = counts / jnp.maximum(jnp.sum(counts, 1, keepdims=True), 1e-30)
    below = above = 0.0
    for stretch, weight in coverage:
        x = (middle[:, None] + (centers - middle[:, None]) * stretch)[:, None]
        below += weight * jnp.sum(mass[:, None] * jnp.square(jnp.maximum(lows[..., None] - x, 0)), -1)
        above += weight * jnp.sum(mass[:, None] * jnp.square(jnp.maximum(x - highs[..., None], 0)), -1)
    total = sum(weight for _, weight in coverage)
    step = (highs[:, None, :] - lows[:, :, None]) / (2.0**bits - 1)
    error = total * jnp.square(step) / 12 + below[:, :, None] + above[:, None, :]
    best = jnp.argmin(error.reshape(len(error), -1), 1)
    pick = jax.vmap(lambda values, i: values[i])
    return pick(lows, best // len(FACTORS)), pick(highs, best % len(FACTORS))


@functools.partial(jax.jit, static_argnames="coverage")
def tensor_range(counts, centers, low, high, bits, coverage):
    """The range [low·f, high·g], zero inside, of least squared error: (low, high, error per unit of count).

    Args:
      counts, centers: [k] histogram, weighted by what an error there costs; low <= 0 <= high: its extremes.
    """
    mass = counts / jnp.maximum(jnp.sum(counts), 1e-30)

    def error(low, high):
        return _error(UniformQuantizer(*activation_scale(low, high, bits), bits), mass, centers, coverage)

    lows, highs = (end.reshape(-1) for end in jnp.meshgrid(low * FACTORS, high * FACTORS, indexing="ij"))
    errors = jax.lax.map(lambda ends: error(*ends), (lows, highs), batch_size=32)
    best = jnp.argmin(errors)
    return lows[best], highs[best], errors[best]


def _error(quantizer, mass, centers, coverage):
    """Mean squared error of values `centers`, each of weight `mass`, and of these stretched, by their weights."""
    return sum(w * jnp.sum(mass * jnp.square(quantizer(s * centers) - s * centers)) for s, w in coverage)


@functools.partial(jax.jit, static_argnames="coverage")
def shifted_log(counts, centers, low, high, bits, coverage) -> tuple[LogQuantizer, jax.Array]:
    """The logarithmic grid of least squared error for values of at least `low`, zero among them (AdaLog's, for GELU).

    Args:
      counts, centers: [k] histogram, weighted by what an error there costs; low <= 0 <= high: its extremes.
    Returns:
      (the grid, its error per unit of count).
    """
    mass = counts / jnp.maximum(jnp.sum(counts), 1e-30)
    shift = jnp.maximum(-low, 1e-3 * high)

    def grid(factor, steps):
        codes = jnp.clip(jnp.round(steps * jnp.log2(factor * high / shift + 1)), 0, 2.0**bits - 2)
        return LogQuantizer(shift * jnp.exp2(codes / steps), steps, bits, shift)

    factors, steps = (v.reshape(-1) for v in jnp.meshgrid(FACTORS, np.float32(STEPS["searched"]), indexing="ij"))
    errors = jax.lax.map(lambda v: _error(grid(*v), mass, centers, coverage), (factors, steps), batch_size=32)
    best = jnp.argmin(errors)
    return grid(factors[best], steps[best]), errors[best]


def uniform(low, high, bits: int | np.float32) -> UniformQuantizer:
    """The uniform quantizer of a range, widened to hold zero."""
    return _uniform(np.float32(low), np.float32(high), np.float32(bits))


@jax.jit
def _uniform(low, high, bits):
    return UniformQuantizer(*activation_scale(jnp.minimum(low, 0.0), jnp.maximum(high, 0.0), bits), bits)


@functools.partial(jax.jit, static_argnames=("tokens", "choice", "coverage"))
def probability_quantizer(
    counts, bits, tokens: int, choice: str, coverage
) -> tuple[jax.Array, LogQuantizer, UniformQuantizer]:
    """The grid of least squared error for softmax outputs.

    Args:
      counts: [k] histogram of −log2(p) over 0..OCTAVES, weighted by what an error there costs.
      tokens: how many share a probability of 1: where all are alike, a grid from 1 on leaves most codes unused.
      choice: "log2", "log_sqrt2" (RepQ-ViT), "uniform", or "searched": the best of all and of AdaLog-like bases.
    Returns:
      (whether the logarithmic one is better, it, the uniform one).
    """
    p = jnp.exp2(-(jnp.arange(counts.shape[0]) + 0.5) * (OCTAVES / counts.shape[0]))
    bits = jnp.asarray(bits, jnp.float32)
    tops = jnp.exp2(-jnp.arange(0, max(6, math.log2(tokens)), 0.25))

    def error(quantizer):
        stretched = [(weight, jnp.minimum(stretch * p, 1.0)) for stretch, weight in coverage]
        return sum(weight * jnp.sum(counts * jnp.square(quantizer(x) - x)) for weight, x in stretched)

    def best(make, *grids):
        values = [axis.reshape(-1) for axis in jnp.meshgrid(*grids, indexing="ij")]
        errors = jax.lax.map(lambda v: error(make(*v)), tuple(values))
        at = jnp.argmin(errors)
        return errors[at], make(*(v[at] for v in values))

    steps = STEPS[choice] or (1,)
    error_log, log = best(lambda top, r: LogQuantizer(top, r, bits), tops, jnp.asarray(steps, jnp.float32))
    error_uniform, even = best(lambda top: UniformQuantizer(top / (2.0**bits - 1), jnp.zeros_like(top), bits), tops)
    logarithmic = {"searched": error_log < error_uniform, "uniform": jnp.array(False)}.get(choice, jnp.array(True))
    return logarithmic, log, even


def choose(logarithmic, log: LogQuantizer, even: UniformQuantizer) -> SiteQuantizer:
    return log if bool(logarithmic) else even
