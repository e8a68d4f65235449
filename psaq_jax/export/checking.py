"""The trial of an exported file of either format before it is called exported."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from psaq_jax.errors import InputError
from psaq_jax.models.model import Model
from psaq_jax.quantization.transform import QuantizedModel

BATCHES = (1, 3)  # sizes that an exported file is tried at: its batch is symbolic
FLOAT_TOLERANCE = 1e-3  # of the logits' range, in float32
NUDGE = 2**-20  # part of a parameter
MARGIN = 4  # seen: up to 1.1 times what the nudges do


def check(run, model: Model | QuantizedModel, path) -> dict:
    """Runs an exported model beside the one that it came from, on noise, before anything calls it exported.

    Args:
      run: pixels [b, h, w, 3] float32 -> logits [b, classes].
    Returns:
      {"images", "mean_difference", "largest_difference", "tolerance"}, in logits. The mean is what counts: rounding to
      codes turns a difference in the last bit of a sum into a whole step now and then.
    Raises:
      InputError: logits of another shape, not finite, or further away on average than one activation step (with few
        bits: than half of what equal logits would be) and than roundings that turn explain.
    """
    pixels = np.asarray(jax.random.normal(jax.random.key(0), (sum(BATCHES), *model.image_shape), jnp.float32))
    parts, expected = np.split(pixels, np.cumsum(BATCHES)[:-1]), np.asarray(model(pixels))
    found = np.concatenate([np.asarray(run(part)) for part in parts])
    if found.shape != expected.shape:
        raise InputError(f"{path}: its logits are {found.shape}, expected {expected.shape}; not exported")
    if not np.isfinite(found).all():
        raise InputError(f"{path}: its logits are not all finite; not exported: check the model with launch.evaluate")
    difference, tolerance = np.abs(found - expected), step(model, expected)
    if isinstance(model, QuantizedModel):
        tolerance = min(tolerance, np.abs(expected - expected.mean()).mean() / 2)
        if difference.mean() > tolerance:
            tolerance = max(tolerance, MARGIN * turned_roundings(model, pixels, expected))
    if difference.mean() > tolerance:
        raise InputError(
            f"{path}: its logits are {difference.mean():.3g} off on average, expected {tolerance:.3g}; not exported"
        )
    return {
        "images": len(pixels),
        "mean_difference": float(difference.mean()),
        "largest_difference": float(difference.max()),
        "tolerance": float(tolerance),
    }


def step(model: Model | QuantizedModel, logits) -> float:
    """One activation step of the logits: their site's scale; where they are not quantized, their range in codes."""
    if not isinstance(model, QuantizedModel):
        exact = model.module.dtype == jnp.float32
        return (FLOAT_TOLERANCE if exact else MARGIN * _last_bit(model)) * float(np.ptp(logits))
    if "logits" in model.sites:
        return float(model.sites["logits"].scale)
    return float(np.ptp(logits)) / (2 ** (model.activation_bits or 8) - 1)


def turned_roundings(model: QuantizedModel, pixels, logits) -> float:
    """How far a model's own logits are off on average when its float parameters differ in their last bits.

    That turns roundings, as another order of sums does. Where there are few logits it is more than a step of theirs.
    """

    def nudged(change):
        leaves = jax.tree.map(lambda x: x * (1 + change) if jnp.issubdtype(x.dtype, jnp.floating) else x, model.params)
        return np.asarray(dataclasses.replace(model, params=leaves)(pixels))

    nudge = max(NUDGE, _last_bit(model))
    return float(np.mean([np.abs(nudged(change) - logits).mean() for change in (nudge, -nudge, nudge / 2)]))


def _last_bit(model: Model | QuantizedModel) -> float:
    """What the last bit of a number is worth that the model computes with, as a part of the number: at most this."""
    return float(jnp.finfo(model.module.dtype).eps)
