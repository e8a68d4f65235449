"""Views of calibration images: what real images hold and synthesized ones lack, made of the images alone.

Synthesized images are full of fine texture from edge to edge. Real ones have plain grounds, whose patches are all alike
and excite other channels, and coarse shapes that reach over many patches; ranges that never saw the one and second
moments that never saw the other fail there. Pure functions of arrays.
"""

import jax
import jax.numpy as jnp
import numpy as np

SHRINKS = 0.4, 0.8  # side of what is set on a plain ground, of the whole
ENLARGEMENTS = 2.0, 8.0  # of a close-up
BATCH = 128  # images that are placed at once, which takes three times their memory


def with_plain_grounds(images: np.ndarray, seed: int = 0) -> np.ndarray:
    """The images, and each once more: shrunk, at a random place of a ground of one random brightness.

    Args:
      images: [n, height, width, 3] float32, normalised; the ground lies between their least and greatest values.
    Returns:
      [2·n, height, width, 3] float32.
    """
    return np.concatenate([images, _on_plain_grounds(images, seed)])


def _on_plain_grounds(images, seed):
    generator = np.random.default_rng(seed)
    n, (least, greatest) = len(images), _ends(images)
    grounds = least + (greatest - least) * generator.uniform(size=(n, 1, 1, 1)).astype(np.float32)
    scales = generator.uniform(*SHRINKS, (n, 2)).astype(np.float32)
    offsets = _offsets(images, scales, generator)
    views = _placed(images, scales, offsets) + (1 - _placed(np.ones_like(images), scales, offsets)) * grounds
    return np.clip(views, least, greatest)


def close_ups(images: np.ndarray, seed: int = 0) -> np.ndarray:
    """Of each image a random part enlarged, by a random factor whose logarithm is uniform; and these once more without
    colour, shrunk on plain grounds.

    Args:
      images: [n, height, width, 3] float32; their least and greatest values are not exceeded.
    Returns:
      [2·n, height, width, 3] float32.
    """
    generator, ends = np.random.default_rng((seed, 1)), _ends(images)
    scales = np.exp(generator.uniform(*np.log(ENLARGEMENTS), (len(images), 1))).astype(np.float32).repeat(2, axis=1)
    views = np.clip(_placed(images, scales, _offsets(images, scales, generator)), *ends)
    grey = _on_plain_grounds(views, seed + 1).mean(axis=-1, keepdims=True)
    return np.concatenate([views, np.clip(grey, *ends)])


def _ends(images):
    """Least and greatest value of each colour: ([3], [3])."""
    return images.min((0, 1, 2)), images.max((0, 1, 2))


def _offsets(images, scales, generator):
    """[n, 2] places of scaled images' corners: anywhere that has them in the picture, or it full of them."""
    free = np.float32(images.shape[1:3]) * (1 - scales)
    return generator.uniform(size=scales.shape).astype(np.float32) * free


def _placed(images, scales, offsets):
    """Each image scaled by its scales [n, 2], with its corner at its offsets [n, 2], on zeros."""
    batches = (slice(i, i + BATCH) for i in range(0, len(images), BATCH))
    return jnp.concatenate([_placed_batch(images[some], scales[some], offsets[some]) for some in batches])


@jax.jit
def _placed_batch(images, scales, offsets):
    def one(image, scale, offset):
        return jax.image.scale_and_translate(image, image.shape, (0, 1), scale, offset, "cubic")

    return jax.vmap(one)(images, scales, offsets)
