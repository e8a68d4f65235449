"""JAX's x64 mode changes nothing: what is computed here is float32."""

import dataclasses

import jax
import numpy as np
import pytest

import psaq_jax
from psaq_jax.quantization.hard_copies import hard_copy
from psaq_jax.quantization.recipes import DefaultRecipe
from tests.golden_files import reference_vit
from tests.scaled_copies import scaled

pytestmark = pytest.mark.usefixtures("quickly_compiled")

SHORT = psaq_jax.SynthesisConfig(num_images=4, group_size=4, iterations=2)
OPTIONS = DefaultRecipe(reconstruct=True, reconstruction_steps=2)


def made(copy):
    model = reference_vit(1)
    images = psaq_jax.synthesize(model, SHORT).images
    q = psaq_jax.quantize(model, None, 4, 8, recipe="default", images=images, options=OPTIONS)
    paper = psaq_jax.quantize(model, psaq_jax.calibrate(model, images), 4, 8)
    of_copy = psaq_jax.synthesize(copy, dataclasses.replace(SHORT, recipe="default", parametrization=None)).images
    return images, q(images), paper(images), of_copy, hard_copy(model)(images)


def test_nothing_changes_in_x64_mode():
    copy = scaled(reference_vit(1))
    expected = made(copy)
    with jax.enable_x64(True):
        found = made(copy)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == np.float32
        np.testing.assert_array_equal(one, other)
