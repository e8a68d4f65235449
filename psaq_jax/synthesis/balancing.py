"""Which of all models of one function images are made on: the one whose values and projections are balanced.

A factor on a channel of the values and its inverse on the projection's row change nothing that a model computes, but
they change the similarities of its attention outputs, and with them the images: one channel a hundred times larger than
the others makes all patches alike or unlike by itself. Training leaves both sides balanced (Du, Hu and Lee,
"Algorithmic Regularization in Learning Deep Homogeneous Models: Layers are Automatically Balanced", NeurIPS 2018), so
that is where a model that was scaled afterwards came from.
"""

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from psaq_jax.models.model import Model, in_float32
from psaq_jax.quantization import folding

GREATEST = 126  # powers of two that float32 holds, and their inverses


@in_float32
def balanced(model: Model) -> Model:
    """The same model, each channel of its values scaled by a power of two, and the projection's row the other way.

    The norm of what makes a channel then is as many times that of what takes it as is usual in its layer, to within a
    factor of two. Powers of two change no bit of the logits; a model that is so balanced already comes back itself.
    """
    params = model.params
    flat = traverse_util.flatten_dict(params, sep="/")
    for block in folding.blocks(params):
        qkv, projection = f"{block}/attention/qkv", f"{block}/attention/projection"
        leaves = (f"{block}/norm1/scale", f"{qkv}/kernel", f"{projection}/kernel")
        factor = _factor(*(np.asarray(flat[leaf], np.float64) for leaf in leaves))
        if (factor != 1).any():
            params = folding.fold_values(params, qkv, projection, jnp.asarray(factor), jnp.zeros(len(factor)))
    return model if params is model.params else model.replace(params=params)


def _factor(scale: np.ndarray, qkv: np.ndarray, projection: np.ndarray) -> np.ndarray:
    """What the values [c] of a block are to be divided by; 1 where either side is all zeros, or not finite."""
    made = np.linalg.norm(scale[:, None] * qkv[:, -len(projection) :], axis=0)
    taken = np.linalg.norm(projection, axis=1)
    some = np.isfinite(made) & np.isfinite(taken) & (made > 0) & (taken > 0)
    factor = np.ones(len(some), np.float32)
    if some.any():
        powers = np.log2(made[some] / taken[some]) / 2
        # Rounded as far as can be from where most of them lie: of like channels none is to have another factor.
        usual = np.angle(np.exp(2j * np.pi * powers).mean()) / (2 * np.pi)
        powers = np.round(powers - usual)
        factor[some] = np.exp2(np.clip(powers - np.round(np.median(powers)), -GREATEST, GREATEST))
    return factor
