"""Passes of many images through one segment, batch by batch: activations wait in host memory.

One program a segment hands out every tensor that any statistic needs (`record`); small ones sum up one tensor each. So
a segment compiles twice, without quantizers and with them (a block whose GELU outputs get scales once more), and equal
tensors share what comes after.

Shapes: n images, b of a batch, c channels, k bins, i inputs of a layer. Every batch has the same b, fewer where images
are large (`images_at_once`); a short one is padded with repeated images, which `mask` [b] marks with 0.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from psaq_jax.quantization import clipping, statistics
from psaq_jax.quantization.recipes import site_filter
from psaq_jax.quantization.segments import Segment
from psaq_jax.quantization.statistics import channels_last, has_heads, row_weights

BATCH = 32  # images at most
NUMBERS = 2**29  # in the tensors of a batch, at most: 2 GiB, of which a pass holds some copies
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


def images_at_once(tensors, images: int, most: int) -> int:
    """How many images, up to `most`, make a batch, where so many `images` have these tensors or shapes."""
    numbers = sum(leaf.size for leaf in jax.tree.leaves(tensors)) // images
    return max(1, min(most, NUMBERS // numbers))


class Record(NamedTuple):
    """What one batch leaves in a segment; names relative to it."""

    sites: dict[str, jax.Array]  # of recipe "default", before their quantizers
    inputs: dict[str, jax.Array]  # of every Dense layer
    output: jax.Array


@functools.partial(jax.jit, static_argnames="segment")
def record(segment: Segment, params, sites, x) -> Record:
    """Runs the segment on one batch, with the quantizers of those sites that have one."""
    seen, inputs, wanted = {}, {}, site_filter("default")

    def tap(name, y):
        if wanted(name):
            seen[name] = y
        return sites[name](y) if name in sites else y

    output = segment(params, x, tap=tap, watch=inputs.__setitem__)
    return Record(seen, inputs, output)


def records(segment: Segment, params, sites, x: np.ndarray, *beside: np.ndarray) -> Iterator[tuple]:
    """(record, *its part of each array beside the images, mask) of every batch of images."""
    for part, *others, mask in batches(x, *beside, size=batch_size(segment, params, sites, x)):
        yield record(segment, params, sites, part), *others, mask


def batch_size(segment: Segment, params, sites, x: np.ndarray) -> int:
    """How many images the segment takes at once."""
    size = min(BATCH, len(x))
    found = record.eval_shape(segment, params, sites, jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype))
    return images_at_once(found, size, size)


def propagate(segment: Segment, params, sites, x: np.ndarray) -> np.ndarray:
    """The segment's outputs, [n, ...]."""
    return np.concatenate([np.asarray(r.output)[mask > 0] for r, mask in records(segment, params, sites, x)])


def propagate_float(segment: Segment, params, x: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Without quantizers: (outputs [n, ...], {Dense layer: mean of its inputs [i]})."""
    outputs, totals = [], {}
    for found, mask in records(segment, params, {}, x):
        outputs.append(np.asarray(found.output)[mask > 0])
        for layer, y in found.inputs.items():
            totals[layer] = _add_rows(totals.get(layer, np.zeros(y.shape[-1] + 1, np.float32)), y, mask)
    means = {layer: np.asarray(total)[:-1] / np.asarray(total)[-1] for layer, total in totals.items()}
    return np.concatenate(outputs), means


@jax.jit
def _add_rows(total, y, mask):
    """Sums of the rows and, last, how many they are: [i + 1]."""
    y = channels_last(y, heads=False)
    weight = row_weights(mask, len(y))
    return total + jnp.append(jnp.sum(weight[:, None] * y, 0), weight.sum())


class Moments(NamedTuple):
    """Of one site's channels, [c] each."""

    low: jax.Array
    high: jax.Array
    mean: jax.Array
    square: jax.Array  # mean square

    def variance_about(self, shift) -> jax.Array:
        """Mean square of the channels minus `shift`."""
        return jnp.maximum(self.square - 2 * shift * self.mean + jnp.square(shift), 0)


def channel_moments(segment: Segment, params, x, widths: dict[str, int]) -> dict[str, Moments]:
    """Extremes and mean squares of the sites in `widths` ({name: channels}), without quantization."""
    totals = {name: _no_moments(width) for name, width in widths.items()}
    for found, mask in records(segment, params, {}, x):
        totals = {name: _add_moments(total, found.sites[name], mask, has_heads(name)) for name, total in totals.items()}
    return {name: _mean_moments(total) for name, total in totals.items()}


def _no_moments(width: int):
    low, zeros = np.full(width, np.inf, np.float32), np.zeros(width, np.float32)
    return low, -low, zeros, zeros, np.float32(0)


@functools.partial(jax.jit, static_argnames="heads")
def _add_moments(total, y, mask, heads):
    low, high, *sums = total
    y = channels_last(y, heads).reshape(-1, len(low))
    weight = row_weights(mask, len(y))[:, None]
    new = jnp.sum(weight * y, 0), jnp.sum(weight * y * y, 0), jnp.sum(weight)
    return jnp.minimum(low, y.min(0)), jnp.maximum(high, y.max(0)), *map(jnp.add, sums, new)


@jax.jit
def _mean_moments(total) -> Moments:
    low, high, *sums, count = total
    return Moments(low, high, *(value / jnp.maximum(count, 1) for value in sums))


def channel_histograms(segment: Segment, params, x, moments: dict[str, Moments]) -> dict[str, jax.Array]:
    """{site: counts [c, k]} over each channel's own range."""
    totals = {name: np.zeros((len(m.low), CHANNEL_BINS), np.float32) for name, m in moments.items()}
    for found, mask in records(segment, params, {}, x):
        for name, m in moments.items():
            totals[name] = _add_channels(totals[name], found.sites[name], mask, m.low, m.high, has_heads(name))
    return totals


@functools.partial(jax.jit, static_argnames="heads")
def _add_channels(total, y, mask, low, high, heads):
    y = channels_last(y, heads).reshape(-1, len(low))
    return total + statistics.histogram(y, row_weights(mask, len(y))[:, None], low, high, CHANNEL_BINS)


def tensor_histograms(
    segment: Segment, params, x, grounds: dict, importance: dict[str, np.ndarray]
) -> dict[str, jax.Array]:
    """{site: counts [k]} over one range a tensor, weighted by what an error there costs.

    Args:
      grounds: {site: (low, high, cost [c])}; of softmax outputs {site: None}: their histogram is of −log2(p), and the
        cost is the squared norm of the value that p multiplies.
      importance: {site: [n, rows of an image]}, times which the rows count; where a site has none, all count alike.
    """
    totals = dict.fromkeys(grounds, np.zeros(TENSOR_BINS, np.float32))
    alike = np.ones((len(x), 1), np.float32)
    for found, *counts, mask in records(segment, params, {}, x, *(importance.get(name, alike) for name in grounds)):
        for (name, ground), count in zip(grounds.items(), counts, strict=True):
            y, total, weight = found.sites[name], totals[name], (count * mask[:, None]).reshape(-1)
            if ground is None:
                value = found.sites[name.removesuffix(PROBABILITIES) + "value"]
                totals[name] = _add_probabilities(total, y, value, weight)
            else:
                totals[name] = _add_tensor(total, y, weight, *ground, has_heads(name))
    return totals


@jax.jit
def _add_probabilities(total, p, value, weight):
    cost = jnp.sum(jnp.square(value.astype(jnp.float32)), -1)[:, :, None]
    rows = row_weights(weight, p[..., 0].size).reshape(*p.shape[:3], 1)
    octaves = -jnp.log2(jnp.maximum(p.astype(jnp.float32), 2.0**-clipping.OCTAVES))
    return total + _counts(octaves, jnp.broadcast_to(cost * rows, p.shape), 0.0, float(clipping.OCTAVES))


@functools.partial(jax.jit, static_argnames="heads")
def _add_tensor(total, y, weight, low, high, cost, heads):
    images, y = len(y), channels_last(y, heads)
    weight = row_weights(weight, len(y))[:, None] * cost
    return total + _counts(y.reshape(images, -1), jnp.broadcast_to(weight, y.shape).reshape(images, -1), low, high)


def _counts(x, weight, low, high) -> jax.Array:
    """Weighted histogram of x [b, ...] over one range: [k]. By images first, as float32 counts no further than 2^24."""
    low, high = (jnp.full(len(x), end, jnp.float32) for end in (low, high))
    values, weights = (array.reshape(len(x), -1).T for array in (x, weight))
    return statistics.histogram(values, weights, low, high, TENSOR_BINS).sum(0)


class LayerMoments(NamedTuple):
    """Of one Dense layer's quantized inputs, over all rows of all images."""

    hessian: jax.Array  # [i, i] mean of x xᵀ
    mean: jax.Array  # [i]


def layer_moments(segment: Segment, layer: str, width: int, params, sites, x) -> LayerMoments:
    """Moments of the inputs, `width` of them, of the Dense layer of that name in the quantized segment."""
    total = np.zeros((width, width), np.float32), np.zeros(width, np.float32), np.float32(0)
    for found, mask in records(segment, params, sites, x):
        total = _add_layer_moments(total, found.inputs[layer], mask)
    return _mean_layer_moments(total)


@jax.jit
def _add_layer_moments(total, y, mask):
    y = channels_last(y, heads=False)
    weight = row_weights(mask, len(y))[:, None]
    weighted = weight * y
    new = jnp.matmul(weighted.T, y, precision="highest"), weighted.sum(0), weight.sum()
    return tuple(map(jnp.add, total, new))


@jax.jit
def _mean_layer_moments(total) -> LayerMoments:
    *sums, rows = total
    return LayerMoments(*(value / rows for value in sums))
