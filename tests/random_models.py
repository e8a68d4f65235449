"""What small random models of all tests share: a ViT of one block, parameters, pixels."""

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from psaq_jax.models.loading import abstract_params
from psaq_jax.models.vit import VisionTransformer

VIT = VisionTransformer((16, 20), (4, 5), width=24, depth=1, heads=3, hidden=40, classes=5)
DINOV2 = VIT.clone(head="class_and_mean_patch", layer_scale=True, swiglu=True, registers=2)


def random_params(module) -> dict:
    """Normal numbers, a fifth in size; LayerNorms' scales lie around 1."""
    generator = np.random.default_rng(0)
    flat = {
        path: jnp.asarray(generator.normal(0, 0.2, leaf.shape).astype(np.float32) + path.endswith("scale"))
        for path, leaf in abstract_params(module).items()
    }
    return traverse_util.unflatten_dict(flat, sep="/")


def random_pixels(module=VIT, count=3):
    return np.random.default_rng(1).normal(size=(count, *module.image_size, 3)).astype(np.float32)
