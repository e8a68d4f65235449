"""Passes of many images through one segment, batch by batch: activations wait in host memory.

Shapes: n images, b of a batch, c channels, k bins, i inputs of a layer. Every batch has the same b; a short one is
padded with repeated images, which `mask` [b] marks with 0.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from psaq_jax.quantization import clipping, statistics
from psaq_jax.quantization.segments import Segment
from psaq_jax.quantization.statistics import channels_last, row_weights

BATCH = 32
CHANNEL_BINS, TENSOR_BINS = 256, 2048
PROBABILITIES = "attention_probabilities"


def batches(*arrays: np.ndarray, size: int = BATCH) -> Iterator[tuple]:
    """(*batches of each array, mask [size])."""
    n = len(arrays[0])
    size = min(size, n)
    for start in range(0, n, size):
        count = min(size, n - start)
        rows = np.minimum(np.arange(start, start + size), n - 1)
        yield *(array[rows] for array in arrays), (np.arange(size) < count).astype(np.float32)


def propagate(segment: Segment, params, sites, x: np.ndarray) -> np.ndarray:
    """The segment's outputs, [n, ...]."""
    outputs = [(np.asarray(_run(segment, params, sites, part)), mask) for part, mask in batches(x)]
    return np.concatenate([y[mask > 0] for y, mask in outputs])


@functools.partial(jax.jit, static_argnames="segment")
def _run(segment, params, sites, x):
    return segment(params, x, tap=quantizing(sites))


def quantizing(sites):
    """The tap that applies the quantizers of those sites that have one."""
    return lambda name, x: sites[name](x) if name in sites else x


class Moments(NamedTuple):
    """Of one site's channels, [c] each."""

    low: jax.Array
    high: jax.Array
    mean: jax.Array
    square: jax.Array  # mean square

    def variance_about(self, shift) -> jax.Array:
        """Mean square of the channels minus `shift`."""
        return jnp.maximum(self.square - 2 * shift * self.mean + jnp.square(shift), 0)


def channel_moments(segment: Segment, params, x, widths: tuple[tuple[str, int], ...]) -> dict[str, Moments]:
    """Extremes and mean squares of the sites named in `widths` ((name, channels), ...), without quantization."""
    total = None
    for part, mask in batches(x):
        new = _moments(segment, params, part, mask, widths)
        total = new if total is None else _merged(total, new)
    return {
        name: Moments(low, high, *(part / jnp.maximum(count, 1) for part in sums))
        for (name, _), (low, high, *sums, count) in zip(widths, total, strict=True)
    }


@functools.partial(jax.jit, static_argnames=("segment", "widths"))
def _moments(segment, params, x, mask, widths):
    found, wanted = {}, dict(widths)

    def tap(name, y):
        if name in wanted:
            y2 = channels_last(name, y).reshape(-1, wanted[name])
            weight = row_weights(mask, len(y2))[:, None]
            sums = (jnp.sum(weight * y2, 0), jnp.sum(weight * y2 * y2, 0), jnp.sum(weight))
            found[name] = (y2.min(0), y2.max(0), *sums)
        return y

    segment(params, x, tap=tap)
    return [found[name] for name, _ in widths]


@jax.jit
def _merged(a, b):
    return [
        (jnp.minimum(p[0], q[0]), jnp.maximum(p[1], q[1]), *map(jnp.add, p[2:], q[2:]))
        for p, q in zip(a, b, strict=True)
    ]


def channel_histograms(segment: Segment, params, x, moments: dict[str, Moments]) -> dict[str, jax.Array]:
    """{site: counts [c, k]} over each channel's own range."""
    widths = tuple((name, len(m.low)) for name, m in moments.items())
    ends = [(m.low, m.high) for m in moments.values()]
    total = sum_of(_channel_histograms(segment, params, part, mask, widths, ends) for part, mask in batches(x))
    return dict(zip(moments, total, strict=True))


def sum_of(parts):
    """The sum of equal trees, one in memory at a time."""
    return functools.reduce(lambda a, b: jax.tree.map(jnp.add, a, b), parts)


@functools.partial(jax.jit, static_argnames=("segment", "widths"))
def _channel_histograms(segment, params, x, mask, widths, ends):
    found, at = {}, {name: (width, *end) for (name, width), end in zip(widths, ends, strict=True)}

    def tap(name, y):
        if name in at:
            width, low, high = at[name]
            y2 = channels_last(name, y).reshape(-1, width)
            weight = row_weights(mask, len(y2))[:, None]
            found[name] = statistics.histogram(y2, weight, low, high, CHANNEL_BINS)
        return y

    segment(params, x, tap=tap)
    return [found[name] for name, _ in widths]


def tensor_histograms(segment: Segment, params, x, ends: dict, costs: dict) -> dict[str, jax.Array]:
    """{site: counts [k]} over one range a tensor, weighted by what an error there costs.

    Args:
      ends: {site: (low, high)} scalars; costs: {site: [c]}. For softmax outputs, which need no `ends`, the histogram is
        of −log2(p) and the cost is the squared norm of the value that p multiplies.
    """
    names = tuple(sorted(costs))
    total = sum_of(_tensor_histograms(segment, params, part, mask, names, ends, costs) for part, mask in batches(x))
    return dict(zip(names, total, strict=True))


@functools.partial(jax.jit, static_argnames=("segment", "names"))
def _tensor_histograms(segment, params, x, mask, names, ends, costs):
    found, seen = {}, {}

    def tap(name, y):
        seen[name.rpartition("/")[2]] = y
        if name in names and name.endswith(PROBABILITIES):
            value = jnp.sum(jnp.square(seen["value"].astype(jnp.float32)), -1)[:, :, None]
            cost = value * jnp.repeat(mask, len(y) // len(mask))[:, None, None, None]
            octaves = -jnp.log2(jnp.maximum(y.astype(jnp.float32), 2.0**-clipping.OCTAVES)).reshape(-1, 1)
            cost = jnp.broadcast_to(cost, y.shape).reshape(-1, 1)
            top = jnp.full(1, float(clipping.OCTAVES))
            found[name] = statistics.histogram(octaves, cost, jnp.zeros(1), top, TENSOR_BINS)[0]
        elif name in names:
            low, high = ends[name]
            y2 = channels_last(name, y)
            weight = row_weights(mask, len(y2))[:, None] * costs[name]
            flat = jnp.broadcast_to(weight, y2.shape).reshape(-1, 1)
            found[name] = statistics.histogram(y2.reshape(-1, 1), flat, low[None], high[None], TENSOR_BINS)[0]
        return y

    segment(params, x, tap=tap)
    return [found[name] for name in names]


class LayerMoments(NamedTuple):
    """Of one Dense layer's inputs: quantized and float, over all rows of all images."""

    hessian: jax.Array  # [i, i] mean of x xᵀ, quantized
    mean: jax.Array  # [i], quantized
    float_mean: jax.Array  # [i]


def layer_moments(segment: Segment, layer: str, params, sites, x, float_params, float_x) -> LayerMoments:
    """Moments of the inputs of the Dense layer of that name, in the quantized and in the float segment."""
    parts = (
        _layer_moments(segment, layer, params, sites, part, float_params, float_part, mask)
        for part, float_part, mask in batches(x, float_x)
    )
    *sums, rows = sum_of(parts)
    return LayerMoments(*(value / rows for value in sums))


@functools.partial(jax.jit, static_argnames=("segment", "layer"))
def _layer_moments(segment, layer, params, sites, x, float_params, float_x, mask):
    def inputs(params, x, tap):
        found = {}

        def watch(name, value):
            found[name] = value

        segment(params, x, tap=tap, watch=watch)
        return found[layer].reshape(-1, found[layer].shape[-1]).astype(jnp.float32)

    quantized = inputs(params, x, quantizing(sites))
    exact = inputs(float_params, float_x, lambda name, y: y)
    weight = row_weights(mask, len(quantized))[:, None]
    weighted = quantized * weight
    hessian = jnp.matmul(weighted.T, quantized, precision="highest")
    return hessian, weighted.sum(0), (exact * weight).sum(0), weight.sum()
