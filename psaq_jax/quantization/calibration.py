"""Calibration: the ranges of a model's sites on calibration images."""

import functools
import logging

import jax
import numpy as np

from psaq_jax import distributed, meshes
from psaq_jax.checks import check_whole
from psaq_jax.errors import InputError
from psaq_jax.models.model import Model, check_images, check_sound_model, exact_products
from psaq_jax.quantization.recipes import site_filter
from psaq_jax.sites import Ranges, observe

LOG = logging.getLogger(__name__)
STRANGE = 10  # times the greatest normalised value of a pixel; noise reaches six times where that is 1


def calibrate(model: Model, pixels, recipe: str = "paper", batch_size: int = 32) -> Ranges:
    """Minimum and maximum of every quantized site over calibration images, through the float model: the release's
    observer ("minmax"), over all images.

    Batches spread over all devices. With several processes, all call it with the same images and take their share.

    Args:
      pixels: [n, height, width, 3] normalised, any n of at least 1.
      recipe: which sites ("paper": the release's; 37 for a ViT of 3 blocks).
      batch_size: images a pass of one device; the ranges do not depend on it beyond rounding, nor on the devices.
    Returns:
      {site name: (minimum, maximum)}, float32 scalars, in the order in which the sites run.
    Raises:
      InputError: no float model, an unknown recipe, a batch_size below 1, no images, images of another shape, or pixels
        that are not finite.
    """
    check_sound_model(model, "calibrate")
    site_filter(recipe)  # which tells a wrong one before it is an argument of a compiled function
    batch_size = check_whole("batch_size", batch_size, 1)
    pixels = check_pixels(model, pixels)
    batches = [pixels[i : i + batch_size] for i in range(0, len(pixels), batch_size)]
    # Repeated images change no minimum, and compile nothing anew.
    missing = len(batches[0]) - len(batches[-1])
    batches[-1] = np.concatenate([batches[-1], np.repeat(batches[-1][-1:], missing, axis=0)])
    own = distributed.share(batches)
    devices = jax.local_devices()[: len(own)]
    placement = meshes.over(devices)
    model = jax.device_put(model, placement.everywhere)
    names, extremes = [], []
    for start in range(0, len(own), len(devices)):
        wave = own[start : start + len(devices)]
        wave = np.stack(wave + wave[-1:] * (len(devices) - len(wave)))
        names, values = zip(*_observe_wave(model, wave, recipe, placement), strict=True)
        extremes.append(np.asarray(values))  # [sites, 2, devices]
    found = distributed.gather(np.concatenate(extremes, axis=-1).transpose(2, 0, 1))
    low, high = found.min(axis=0)[:, 0], found.max(axis=0)[:, 1]
    return {str(name): (low[i], high[i]) for i, name in enumerate(names)}


def check_pixels(model: Model, pixels) -> np.ndarray:
    """Calibration images as float32 [n, height, width, 3], or InputError."""
    what = "calibration images"
    pixels = np.asarray(check_images(pixels, model.image_shape, what, some=True), np.float32)
    if not np.isfinite(pixels).all():
        raise InputError(f"{what} hold NaN or infinite pixels; expected finite normalised pixels")
    _warn_of_strange(model, pixels)
    return pixels


def _warn_of_strange(model: Model, pixels: np.ndarray) -> None:
    """Ranges of pixels that were never normalised, or of no pictures at all, would be of no use."""
    low, high, (least, greatest) = pixels.min(), pixels.max(), model.preprocessing.pixel_range
    if max(-low, high) > STRANGE * max(-least, greatest):
        LOG.warning(
            "calibration images reach from %g to %g where this model's pixels reach from %g to %g; were they "
            "normalised? `preprocess` of the model does it", low, high, least, greatest,
        )  # fmt: skip
    if low == high:
        LOG.warning("calibration images are %g everywhere; what they make of the model is of little use", low)


@functools.partial(jax.jit, static_argnames=("recipe", "placement"))
def _observe_wave(model: Model, batches, recipe: str, placement: meshes.Placement):
    """A batch [b, h, w, 3] on each device, the same program for any number of them: [(site, its ranges)]."""

    def one_device(model, batches):
        # A list of pairs: jit returns dictionaries sorted by name, and the order of the sites matters.
        with exact_products(model.module.dtype):
            ranges = observe(model.module, model.params, batches[0], site_filter(recipe))
        return [(_Name(name), tuple(x[None] for x in value)) for name, value in ranges.items()]

    shares, everywhere = placement
    specs = {"in_specs": (everywhere.spec, shares.spec), "out_specs": shares.spec}
    return jax.shard_map(one_device, mesh=shares.mesh, **specs, check_vma=False)(model, batches)


@jax.tree_util.register_static
class _Name(str):
    """A string that passes through jit."""
