"""Small random models of every family, float and quantized, for the tests of exported files."""

import jax
import jax.numpy as jnp
import numpy as np

from psaq_jax import Model, calibrate, quantize
from psaq_jax.models.preprocessing import Preprocessing
from psaq_jax.models.swin import SwinTransformer
from psaq_jax.models.vit import VisionTransformer

VIT = VisionTransformer((16, 20), (4, 5), width=24, depth=1, heads=3, hidden=40, classes=5)
SWIN = SwinTransformer((18, 16), (2, 2), (8, 16), (1, 1), (2, 4), (16, 32), (4, 4), 5, convention="timm")
VITS = {
    "vit": VIT,
    "remainder": VIT.clone(image_size=(18, 23), qkv_bias=False, activation="quick_gelu"),
    "distilled": VIT.clone(distillation_token=True, head="distilled", activation="gelu_new"),
    "dinov2": VIT.clone(head="class_and_mean_patch", layer_scale=True, swiglu=True, registers=2),
}


def random_model(module=VIT) -> Model:
    params = module.init(jax.random.key(0), jnp.zeros((1, *module.image_size, 3)))["params"]
    generator = np.random.default_rng(0)  # biases and tokens are no longer zero
    params = jax.tree.map(lambda x: x + generator.normal(0, 0.1, x.shape).astype(np.float32), params)
    return Model(params, module, ("a", "b", "c", "d", "e"), Preprocessing(module.image_size, (0.4,) * 3, (0.2,) * 3))


def random_pixels(module=VIT, count=5):
    return np.random.default_rng(1).normal(size=(count, *module.image_size, 3)).astype(np.float32)


def random_quantized(module=VIT, weight_bits=4, activation_bits=8, recipe="paper"):
    model = random_model(module)
    ranges = calibrate(model, random_pixels(module, 8), recipe)
    return quantize(model, ranges, weight_bits, activation_bits, recipe)
