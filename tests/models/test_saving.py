"""What `save_huggingface` writes is read by `load_model`."""

import jax
import numpy as np
import pytest

from psaq_jax import load_model
from psaq_jax.models.saving import save_huggingface
from psaq_jax.models.swin import SwinTransformer
from psaq_jax.models.vit import VisionTransformer
from tests.quantization.artefacts import random_model


@pytest.mark.parametrize("module", [
    VisionTransformer((32, 32), (8, 8), 24, 2, 3, 48, 5),
    VisionTransformer((24, 16), (8, 4), 24, 2, 3, 48, 5),
    SwinTransformer((28, 28), (2, 2), (24, 48), (2, 1), (3, 6), (36, 72), (7, 7), 5),
])  # fmt: skip
def test_comes_back_as_it_was(tmp_path, module):
    model = random_model(module)
    save_huggingface(tmp_path, module, model.params, list("abcde"), (0.5,) * 3, (0.5,) * 3)
    loaded = load_model(str(tmp_path))
    assert (loaded.module, loaded.labels) == (module, tuple("abcde"))
    jax.tree.map(np.testing.assert_array_equal, loaded.params, model.params)
