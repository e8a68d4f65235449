"""Image priors: total variation, jitter and clip (PSAQ-ViT's release, `generate_data.py`). Images are [b, h, w, c]."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from psaq_jax.models.preprocessing_configs import IMAGENET_MEAN, IMAGENET_STD

NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))  # rows down, columns right: each direction once


@jax.custom_vjp
def total_variation(images: jax.Array) -> jax.Array:
    """Sum of the L2 norms, over the whole batch, of the differences to the four kinds of neighbours: a scalar.

    Horizontal, vertical and both diagonals. The gradient of a norm that is zero is zero, not NaN.
    """
    return _norms(images).sum()


def _norms(images):
    """The four norms."""
    return jnp.sqrt(jax.lax.platform_dependent(images, tpu=_squares_at_once, default=_squares_in_parts))


def _squares_in_parts(images):
    """Sums of squares, added up over parts of the batch first: one pass, which writes only these sums. Of four
    reductions XLA makes four passes, except on a TPU.
    """
    parts = jnp.split(_with_border(images), max(n for n in range(1, 9) if len(images) % n == 0))
    squares = [sum(jnp.square(_differences(x, images.shape, *to)) for x in parts) for to in NEIGHBOURS]
    return jnp.stack(squares).sum(axis=(1, 2, 3))


def _squares_at_once(images):
    """The same by reductions, of which XLA makes one pass on a TPU."""
    bordered = _with_border(images)
    return jnp.stack([jnp.sum(jnp.square(_differences(bordered, images.shape, *to))) for to in NEIGHBOURS])


def _with_border(images):
    """Zeros around each image. Columns and channels make one axis: a row's numbers then lie in one run."""
    b, h, w, c = images.shape
    return jnp.pad(images.reshape(b, h, w * c), ((0, 0), (1, 1), (c, c)))


def _differences(bordered, shape, down, right):
    """Differences to one neighbour, zero where there is none: [part of b, h, w·c]."""
    _, h, w, c = shape
    row, column = np.arange(h)[:, None] + down, np.arange(w * c) // c + right
    exists = (0 <= row) & (row < h) & (0 <= column) & (column < w)
    here = bordered[:, 1 : 1 + h, c : c + w * c]
    there = bordered[:, 1 + down : 1 + down + h, (1 + right) * c : (1 + right + w) * c]
    return (here - there) * exists.astype(bordered.dtype)


def _variation_forward(images):
    norms = _norms(images)
    return norms.sum(), (images, norms)


def _variation_backward(residuals, cotangent):
    """A pixel's derivative of one norm: the sum of its differences to both neighbours, over the norm."""
    images, norms = residuals
    scale = cotangent * jnp.where(norms > 0, 1 / jnp.where(norms > 0, norms, 1), 0)
    differences = functools.partial(_differences, _with_border(images), images.shape)
    terms = zip(scale, NEIGHBOURS, strict=True)
    gradient = sum(s * (differences(down, right) + differences(-down, -right)) for s, (down, right) in terms)
    return (gradient.reshape(images.shape),)


total_variation.defvjp(_variation_forward, _variation_backward)


@jax.custom_vjp
def jitter(images: jax.Array, offset: jax.Array, flip: jax.Array) -> jax.Array:
    """Rolls the batch by `offset` pixels down and right alike, then flips it left to right where `flip` is true."""
    return _flip(jnp.roll(images, (offset, offset), axis=(1, 2)), flip)


def _flip(images, flip):
    # A branch, not a choice between two arrays: that would write the images thrice.
    return jax.lax.cond(flip, lambda x: x[:, :, ::-1], lambda x: x, images)


def _jitter_forward(images, offset, flip):
    return jitter(images, offset, flip), (offset, flip)


def _jitter_backward(moves, cotangent):
    """Pixels only move, so the gradient moves back: XLA's own transpose of a roll fills arrays of twice the size."""
    offset, flip = moves
    return jnp.roll(_flip(cotangent, flip), (-offset, -offset), axis=(1, 2)), None, None


jitter.defvjp(_jitter_forward, _jitter_backward)


def clip(images: jax.Array, mean=IMAGENET_MEAN, std=IMAGENET_STD, white=1.0) -> jax.Array:
    """Clips each channel to what a pixel in [0, white] can be after normalisation: [−mean/std, (white−mean)/std].

    The paper clips with ImageNet's mean and std, whatever the model's own.
    """
    mean, std = np.asarray(mean, np.float64), np.asarray(std, np.float64)
    return jnp.clip(images, (-mean / std).astype(images.dtype), ((white - mean) / std).astype(images.dtype))
