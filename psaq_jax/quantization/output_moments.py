"""What an error in each combination of a layer's outputs costs: second moments of the logits' gradients there.

One pass back through the whole model gives the gradients at the blocks' outputs, which folding leaves alone. From these
each block, as it is folded, gives those at the outputs of its own layers. On the calibration images alone; the factor
of the Fisher matrix that belongs to the outputs, as in K-FAC (Martens & Grosse, ICML 2015).

Shapes: n images, b of a batch, o outputs of a layer.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from psaq_jax.models.model import Model
from psaq_jax.quantization import streaming
from psaq_jax.quantization.importance import by_batches, site_gradients
from psaq_jax.quantization.segments import Segment
from psaq_jax.quantization.statistics import channels_last

IMAGES = 64  # at most; their gradients at all blocks' outputs wait in memory
COMBINATIONS = 2  # of the logits, an image


def block_gradients(model: Model, images: np.ndarray, seed: int = 0) -> dict[str, np.ndarray]:
    """{site at a block's output: [COMBINATIONS·n, ...]}, the gradients of random combinations of the logits.

    Args:
      images: [n, height, width, 3] float32, normalised. seed: of the combinations.
    """
    return by_batches(_block_gradients, model, np.concatenate([images] * COMBINATIONS), seed)


@jax.jit
def _block_gradients(model: Model, images, key) -> dict[str, jax.Array]:
    return site_gradients(model, images, key, lambda name: name.endswith("/residual2"))[0]


def output_moments(segment: Segment, params, x: np.ndarray, gradients: np.ndarray) -> dict[str, jax.Array]:
    """{Dense layer of the block: [o, o] sum of g gᵀ}.

    Args:
      params: of the block, in floating point. x: its inputs [n, ...] there, of the images that `gradients` are of.
    """
    totals, size = {}, streaming.batch_size(segment, params, {}, x)
    for part, given, mask in streaming.batches(np.concatenate([x] * COMBINATIONS), gradients, size=size):
        for layer, moments in _output_moments(segment, params, part, given, mask).items():
            totals[layer] = totals.get(layer, 0) + moments
    return totals


@functools.partial(jax.jit, static_argnames="segment")
def _output_moments(segment: Segment, params, x, gradients, mask) -> dict[str, jax.Array]:
    outputs = {}

    def see(name, y):
        outputs[name] = y
        return y

    jax.eval_shape(lambda: segment(params, x, replace=see))
    offsets = {name: jnp.zeros(y.shape, y.dtype) for name, y in outputs.items()}
    _, back = jax.vjp(lambda offsets: segment(params, x, replace=lambda name, y: y + offsets[name]), offsets)
    (found,) = back(gradients * mask.reshape(-1, *[1] * (gradients.ndim - 1)).astype(gradients.dtype))
    rows = {name: channels_last(gradient, heads=False) for name, gradient in found.items()}
    return {name: jnp.matmul(y.T, y, precision="highest") for name, y in rows.items()}
