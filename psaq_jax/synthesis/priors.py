"""Image priors: total variation, jitter and clip (PSAQ-ViT's release, `generate_data.py`). Images are [b, h, w, c]."""

import jax
import jax.numpy as jnp
import numpy as np


def total_variation(images: jax.Array) -> jax.Array:
    """Sum of the L2 norms, over the whole batch, of the differences to the four kinds of neighbours: a scalar.

    Horizontal, vertical and both diagonals. The gradient of a norm that is zero is zero, not NaN.
    """
    differences = (
        images[:, :, :-1] - images[:, :, 1:],
        images[:, :-1] - images[:, 1:],
        images[:, :-1, 1:] - images[:, 1:, :-1],
        images[:, :-1, :-1] - images[:, 1:, 1:],
    )
    return sum(_norm(d) for d in differences)


def _norm(x):
    square = jnp.sum(jnp.square(x))
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)


def jitter(images: jax.Array, offset: jax.Array, flip: jax.Array) -> jax.Array:
    """Rolls the batch by `offset` pixels down and right alike, then flips it left to right where `flip` is true."""
    rolled = jnp.roll(images, (offset, offset), axis=(1, 2))
    # A branch, not a choice between two arrays: the backward pass then moves the images once, not three times.
    return jax.lax.cond(flip, lambda x: x[:, :, ::-1], lambda x: x, rolled)


IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def clip(images: jax.Array, mean=IMAGENET_MEAN, std=IMAGENET_STD) -> jax.Array:
    """Clips each channel to what a pixel in [0, 1] can be after normalisation: [−mean/std, (1−mean)/std].

    The paper clips with ImageNet's mean and std, whatever the model's own.
    """
    mean, std = np.asarray(mean, np.float64), np.asarray(std, np.float64)
    return jnp.clip(images, (-mean / std).astype(images.dtype), ((1 - mean) / std).astype(images.dtype))
