"""Views of calibration images: what real images hold and synthesized ones lack, made of the images alone.

Synthesized images are full of texture from edge to edge. Real ones have plain grounds, whose patches are all alike and
excite other channels; ranges and second moments that never saw one fail there. Pure functions of arrays.
"""

import jax
import jax.numpy as jnp
import numpy as np

LEAST, GREATEST = 0.4, 0.8  # side of what is set on a plain ground, of the whole


def with_plain_grounds(images: np.ndarray, seed: int = 0) -> np.ndarray:
    """The images, and each once more: shrunk, at a random place of a ground of one random brightness.

    Args:
      images: [n, height, width, 3] float32, normalised; the ground lies between their least and greatest values.
    Returns:
      [2·n, height, width, 3] float32.
    """
    generator = np.random.default_rng(seed)
    n, least, greatest = len(images), images.min((0, 1, 2)), images.max((0, 1, 2))
    grounds = least + (greatest - least) * generator.uniform(size=(n, 1, 1, 1)).astype(np.float32)
    scales = generator.uniform(LEAST, GREATEST, (n, 2)).astype(np.float32)
    free = np.float32(images.shape[1:3]) * (1 - scales)
    views = _placed(images, grounds, scales, generator.uniform(size=(n, 2)).astype(np.float32) * free)
    return np.concatenate([images, np.clip(views, least, greatest)])


@jax.jit
def _placed(images, grounds, scales, offsets):
    """Each image shrunk by its scales [n, 2], its corner at its offsets, on its ground [n, 1, 1, 1]."""

    def one(image, scale, offset):
        return jax.image.scale_and_translate(image, image.shape, (0, 1), scale, offset, "cubic")

    place = jax.vmap(one)
    covered = place(jnp.ones_like(images), scales, offsets)
    return place(images, scales, offsets) + (1 - covered) * grounds
