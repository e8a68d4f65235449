"""Small random models of every family, float and quantized, for the tests of exported files and of integers."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from psaq_jax import Model, calibrate, quantize
from psaq_jax.models.preprocessing import Preprocessing
from psaq_jax.models.swin import SwinTransformer
from tests.quick_compilation import quickly
from tests.random_models import DINOV2, VIT, random_params, random_pixels

SWIN = SwinTransformer((18, 16), (2, 2), (8, 16), (1, 1), (2, 4), (16, 32), (4, 4), 5, convention="timm")
SWINS = {
    "swin_timm": SWIN.clone(depths=(2, 1)),
    "swin_transformers": SWIN.clone(depths=(2, 1), image_size=(19, 16), convention="transformers"),
}
VITS = {
    "vit": VIT,
    "remainder": VIT.clone(image_size=(18, 23), qkv_bias=False, activation="quick_gelu"),
    "distilled": VIT.clone(distillation_token=True, head="distilled", activation="gelu_new"),
    "dinov2": DINOV2,
}


def random_model(module=VIT) -> Model:
    preprocessing = Preprocessing(module.image_size, (0.4,) * 3, (0.2,) * 3)
    return Model(random_params(module), module, ("a", "b", "c", "d", "e"), preprocessing)


@functools.cache
def random_quantized(module=VIT, weight_bits=4, activation_bits=8, recipe="paper"):
    with quickly():  # how it was made is for others to test
        model = random_model(module)
        ranges = calibrate(model, random_pixels(module, 8), recipe)
        q = quantize(model, ranges, weight_bits, activation_bits, recipe)
    return with_activation_scales(q) if recipe == "default" else q


def with_activation_scales(q):
    """As recipe "default" leaves a model at 8 bits that it has seen images with: see `layers.Mlp`."""
    if getattr(q.module, "swiglu", False):
        return q
    generator, flat = np.random.default_rng(2), traverse_util.flatten_dict(q.params, sep="/")
    for path in [path for path in flat if path.endswith("mlp/dense2/kernel")]:
        scale = generator.uniform(0.5, 2, flat[path].codes.shape[0]).astype(np.float32)
        flat[path.replace("dense2/kernel", "activation_scale")] = jnp.asarray(scale)
    return dataclasses.replace(q, params=traverse_util.unflatten_dict(flat, sep="/"))
