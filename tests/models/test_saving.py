"""What `save_huggingface_vit` writes is read by `load_model`."""

import jax
import numpy as np
import pytest

from psaq_jax import load_model
from psaq_jax.models.saving import save_huggingface_vit
from psaq_jax.models.vit import VisionTransformer
from tests.quantization.artefacts import random_model


@pytest.mark.parametrize("size, patch", [((32, 32), (8, 8)), ((24, 16), (8, 4))])
def test_comes_back_as_it_was(tmp_path, size, patch):
    module = VisionTransformer(size, patch, 24, 2, 3, 48, 5)
    model = random_model(module)
    save_huggingface_vit(tmp_path, module, model.params, list("abcde"), (0.5,) * 3, (0.5,) * 3)
    loaded = load_model(str(tmp_path))
    assert (loaded.module.image_size, loaded.module.patch_size, loaded.labels) == (size, patch, tuple("abcde"))
    jax.tree.map(np.testing.assert_array_equal, loaded.params, model.params)
