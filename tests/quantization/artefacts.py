"""What the tests of artefacts share: small random models, and what equal models are."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import safetensors

from psaq_jax import Model
from psaq_jax.models.preprocessing import Preprocessing
from psaq_jax.models.swin import SwinTransformer
from tests.random_models import DINOV2, VIT, random_params, random_pixels

SWIN = SwinTransformer((18, 16), (2, 2), (8, 16), (2, 1), (2, 4), (16, 32), (4, 4), 5, convention="timm")
MODULES = {
    "vit": VIT,
    "distilled": VIT.clone(distillation_token=True, head="distilled"),
    "dinov2": DINOV2,
    "bfloat16": VIT.clone(dtype=jnp.bfloat16),
    "swin": SWIN,
}


def random_model(module=VIT, source="", labels=("a", "b", "c", "d|e", "<f>\n\ud800")) -> Model:
    preprocessing = Preprocessing(module.image_size, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "cover", (40, 40))
    return Model(random_params(module), module, labels, preprocessing, source)


def assert_equal(loaded, saved):
    """Every field, every bit."""
    for field in dataclasses.fields(saved):
        if field.name not in ("params", "sites"):
            assert getattr(loaded, field.name) == getattr(saved, field.name), field.name
    assert list(loaded.sites) == list(saved.sites)
    assert loaded.image_size == saved.image_size
    before, after = jax.tree.flatten(saved), jax.tree.flatten(loaded)
    assert before[1] == after[1]
    for x, y in zip(before[0], after[0], strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()
    pixels = random_pixels(saved.module)
    assert np.asarray(saved(pixels)).tobytes() == np.asarray(loaded(pixels)).tobytes()


def stored(directory) -> dict[str, tuple[str, list[int]]]:
    with safetensors.safe_open(directory / "model.safetensors", framework="numpy") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}
        return {name: (part.get_dtype(), part.get_shape()) for name, part in slices.items()}
