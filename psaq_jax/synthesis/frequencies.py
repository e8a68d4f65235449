"""Images by their frequencies, in the measure of natural ones (Olah et al., "Feature Visualization", Distill, 2017).

In natural images the amplitude of a frequency falls as its inverse, and most of what differs from pixel to pixel is
brightness. An image is the sum of waves in that measure: a step of Adam, which moves every coefficient alike, then
moves what is large in an image most, where a step in pixels makes noise of every colour. Shapes: [b, h, w, 3].
"""

import jax
import jax.numpy as jnp
import numpy as np

LEARNING_RATE = 0.1  # Adam's, of coefficients that start with variance 1
CONTRASTS = 0.3, 3.0  # least and greatest of a group: from half of the pixels' range to black shapes on white
# The root of the covariance of natural images' red, green and blue, in parts of its size; columns: brightness, blue
# against red, green against both (figures: tensorflow/lucid, optvis/param/color.py).
COLOURS = np.array([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])
COLOURS = (COLOURS / np.sqrt(np.mean(np.sum(COLOURS**2, axis=1)))).astype(np.float32)


def images(coefficients: jax.Array, mean, std, white: float = 1.0) -> jax.Array:
    """The normalised images [b, h, w, 3] of coefficients of that shape, within what pixels of [0, white] can be."""
    waves = hartley(jnp.moveaxis(coefficients, -1, 1) * amplitudes(*coefficients.shape[1:3]))
    # Sums: the matrices of a product would be three numbers wide.
    pixels = jnp.stack([sum(part * waves[:, k] for k, part in enumerate(row)) for row in COLOURS], axis=-1)
    mean, std = np.asarray(mean, np.float64), np.asarray(std, np.float64)
    centre, reach = (white / 2 - mean) / std, white / 2 / std
    return centre.astype(np.float32) + reach.astype(np.float32) * jnp.tanh(contrasts(len(pixels)) * pixels)


@jax.custom_vjp
def hartley(x: jax.Array) -> jax.Array:
    """Hartley's transform of [..., h, w], real like them: orthonormal, and its own inverse, transpose and gradient."""
    height, width = x.shape[-2:]
    waves = jnp.fft.rfft2(x) * np.float32(1 / np.sqrt(height * width))
    rest = (waves.real + waves.imag)[..., 1 : (width + 1) // 2]  # of the frequencies opposite, which `rfft2` leaves out
    rest = jnp.roll(jnp.flip(rest, (-2, -1)), 1, axis=-2)
    return jnp.concatenate([waves.real - waves.imag, rest], axis=-1)


hartley.defvjp(lambda x: (hartley(x), None), lambda _, cotangent: (hartley(cotangent),))


def amplitudes(height: int, width: int) -> np.ndarray:
    """[h, w] float32, falling as the inverse of the frequency, of mean square 1; a constant counts as one wave."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    found = 1 / np.maximum(frequency, 1 / max(height, width))
    return (found / np.sqrt(np.mean(found**2))).astype(np.float32)


def contrasts(count: int) -> np.ndarray:
    """[count, 1, 1, 1] float32 within `CONTRASTS`, at equal ratios and in such an order that the first images have all.

    The golden ratio's multiples, of which each falls into the largest gap that those before it have left.
    """
    least, greatest = CONTRASTS
    places = np.argsort(np.argsort(np.arange(count) * (5**0.5 - 1) / 2 % 1))
    found = least * (greatest / least) ** ((places + 0.5) / count)
    return found.astype(np.float32)[:, None, None, None]
