"""JAX's x64 mode changes nothing: what is computed here is float32."""

import jax
import numpy as np
import pytest

import psaq_jax
from psaq_jax.quantization.recipes import DefaultRecipe
from tests.golden_files import GOLDEN

pytestmark = pytest.mark.usefixtures("quickly_compiled")

SHORT = psaq_jax.SynthesisConfig(num_images=4, group_size=4, iterations=2)
OPTIONS = DefaultRecipe(reconstruct=True, reconstruction_steps=2)


def made():
    model = psaq_jax.load_model(GOLDEN / "paper" / "vit")
    images = psaq_jax.synthesize(model, SHORT).images
    q = psaq_jax.quantize(model, None, 4, 8, recipe="default", images=images, options=OPTIONS)
    paper = psaq_jax.quantize(model, psaq_jax.calibrate(model, images), 4, 8)
    return images, q(images), paper(images)


def test_nothing_changes_in_x64_mode():
    expected = made()
    with jax.enable_x64(True):
        found = made()
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == np.float32
        np.testing.assert_array_equal(one, other)
