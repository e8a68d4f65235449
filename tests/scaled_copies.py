"""Copies of a model that compute the same to the bit, with values and projections of very uneven size."""

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from psaq_jax.models.model import Model
from psaq_jax.quantization import folding


def blocks(model: Model):
    """(name, parameters) of every block, flat."""
    flat = traverse_util.flatten_dict(model.params, sep="/")
    for block in folding.blocks(model.params):
        start = f"{block}/"
        yield block, {k.removeprefix(start): np.asarray(v) for k, v in flat.items() if k.startswith(start)}


def scaled(model: Model, power: int | None = None) -> Model:
    """Channels of the values are powers of two, 1/4 to 64, times as large, and the projection's rows as much smaller.

    Args:
      power: of the last channel of every block, where no other is to change.
    """
    params = model.params
    for name, block in blocks(model):
        channels = len(block["attention/projection/kernel"])
        powers = np.random.default_rng(channels).integers(-2, 7, channels)
        if power is not None:
            powers = power * (np.arange(channels) == channels - 1)
        layers = f"{name}/attention/qkv", f"{name}/attention/projection"
        params = folding.fold_values(params, *layers, jnp.asarray(np.exp2(-powers), jnp.float32), jnp.zeros(channels))
    return model.replace(params=params)
