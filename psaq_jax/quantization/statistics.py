"""Streamed statistics of activations: per-channel extremes, histograms, second moments. Pure functions of arrays.

Shapes: b batch, r rows (everything but the channels), c channels, k bins. A batch comes with a mask [b] of 0 and 1, by
which an incomplete batch is padded; windows of an image lie beside each other, so the mask spreads over the rows.
"""

import functools

import jax
import jax.numpy as jnp


def has_heads(name: str) -> bool:
    """Whether the site of that name is [b, h, n, d] with heads and head width for channels."""
    return name.rpartition("/")[2] in ("query", "key", "value", "attention_output")


def width(name: str, shape: tuple[int, ...]) -> int:
    """The channels of a site of that name and shape."""
    return shape[1] * shape[3] if has_heads(name) else shape[-1]


def channels_last(x: jax.Array, heads: bool) -> jax.Array:
    """A site's tensor as [r, c]; see `has_heads`."""
    if heads:
        x = x.transpose(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], -1)
    return x.reshape(-1, x.shape[-1]).astype(jnp.float32)


def row_weights(mask: jax.Array, rows: int) -> jax.Array:
    """The mask [b] of images, or weights of their parts, image by image, for the rows [r] that they own."""
    return jnp.repeat(mask, rows // mask.shape[0], total_repeat_length=rows)


def histogram(x: jax.Array, weight: jax.Array, low: jax.Array, high: jax.Array, bins: int) -> jax.Array:
    """Weighted histogram of each channel in its own range: x [r, c], weight [r, 1 or c], low and high [c] -> [c, k]."""
    width = jnp.maximum((high - low) / bins, 1e-30)
    at = jnp.clip(jnp.floor((x - low) / width), 0, bins - 1).astype(jnp.int32)
    at = at + bins * jnp.arange(x.shape[1])
    counts = jnp.zeros(bins * x.shape[1]).at[at.reshape(-1)].add(jnp.broadcast_to(weight, x.shape).reshape(-1))
    return counts.reshape(x.shape[1], bins)


@functools.partial(jax.jit, static_argnames="bins")
def bin_centers(low: jax.Array, high: jax.Array, bins: int) -> jax.Array:
    """The middles of a histogram's bins: low and high [c] -> [c, k]."""
    return low[:, None] + (high - low)[:, None] * (jnp.arange(bins) + 0.5) / bins
