"""Calibration: the ranges of a model's sites on calibration images."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from psaq_jax.errors import InputError
from psaq_jax.models.model import Model
from psaq_jax.quantization.recipes import site_filter
from psaq_jax.sites import Ranges, observe


def calibrate(model: Model, pixels, recipe: str = "paper", batch_size: int = 32) -> Ranges:
    """Minimum and maximum of every quantized site over calibration images, through the float model.

    Args:
      pixels: [n, height, width, 3] normalised, any n of at least 1.
      recipe: which sites ("paper": DESIGN of the release; 37 for a ViT of 3 blocks).
      batch_size: images a pass; the ranges do not depend on it beyond rounding.
    Returns:
      {site name: (minimum, maximum)}, float32 scalars, in the order in which the sites run.
    Raises:
      InputError: no images, images of another shape, or pixels that are not finite.
    """
    pixels = check_pixels(model, pixels)
    found: Ranges = {}
    for start in range(0, len(pixels), batch_size):
        batch = pixels[start : start + batch_size]
        if start and len(batch) < batch_size:  # repeated images change no minimum and compile nothing anew
            batch = np.concatenate([batch, np.repeat(batch[-1:], batch_size - len(batch), axis=0)])
        for name, (low, high) in jax.device_get(_observe(model, batch, recipe)):
            before = found.get(name, (low, high))
            found[name] = (min(before[0], low), max(before[1], high))
    return found


def check_pixels(model: Model, pixels) -> np.ndarray:
    """Calibration images as float32 [n, height, width, 3], or InputError."""
    pixels = np.asarray(pixels, np.float32)
    if pixels.ndim != 4 or pixels.shape[1:] != model.image_shape or not len(pixels):
        expected = "x".join(map(str, model.image_shape))
        raise InputError(f"calibration images are {list(pixels.shape)}, expected one or more of {expected} (NHWC)")
    if not np.isfinite(pixels).all():
        raise InputError("calibration images hold NaN or infinite pixels; expected finite normalised pixels")
    return pixels


@functools.partial(jax.jit, static_argnames="recipe")
def _observe(model: Model, pixels, recipe):
    wanted = site_filter(model.module, recipe)
    # A list of pairs: jit returns dictionaries sorted by name, and the order of the sites matters.
    ranges = observe(model.module, model.params, jnp.asarray(pixels), wanted)
    return [(_Name(name), value) for name, value in ranges.items()]


@jax.tree_util.register_static
class _Name(str):
    """A string that passes through jit."""


def widest(ranges_of_sets) -> Ranges:
    """The union of several calibrations of the same sites."""
    merged: Ranges = {}
    for name, (low, high) in itertools.chain.from_iterable(r.items() for r in ranges_of_sets):
        before = merged.get(name, (low, high))
        merged[name] = (min(before[0], low), max(before[1], high))
    return merged
