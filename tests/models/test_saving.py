"""What `save_huggingface` writes is read by `load_model`."""

import json

import jax
import numpy as np
import pytest

from psaq_jax import load_model
from psaq_jax.models.preprocessing import Preprocessing
from psaq_jax.models.saving import save_huggingface
from psaq_jax.models.swin import SwinTransformer
from psaq_jax.models.vit import VisionTransformer
from tests.quantization.artefacts import random_model


@pytest.mark.parametrize("module", [
    VisionTransformer((32, 32), (8, 8), 24, 2, 3, 48, 5),
    VisionTransformer((24, 16), (8, 4), 24, 2, 3, 48, 5),
    VisionTransformer((24, 16), (8, 4), 24, 2, 3, 48, 5, qkv_bias=False, layer_norm_eps=1e-3, activation="relu"),
    SwinTransformer((16, 16), (2, 2), (24, 48), (2, 1), (3, 6), (36, 72), (4, 4), 5),
])  # fmt: skip
def test_comes_back_as_it_was(tmp_path, module):
    model = random_model(module)
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    save_huggingface(tmp_path, module, model.params, list("abcde"), mean, std)
    loaded = load_model(str(tmp_path))
    assert (loaded.module, loaded.labels) == (module, tuple("abcde"))
    assert loaded.preprocessing == Preprocessing(module.image_size, mean, std)
    size = json.loads((tmp_path / "preprocessor_config.json").read_text())["size"]  # `load_model` would mend it
    assert size == {"height": module.image_size[0], "width": module.image_size[1]}
    jax.tree.map(np.testing.assert_array_equal, loaded.params, model.params)
