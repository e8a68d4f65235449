"""How often quantized models agree with float ones: recipe "default" on a hard copy as on the original, not "paper"."""

import numpy as np
import pytest

import psaq_jax
from psaq_jax import pipeline
from psaq_jax.config import JobConfig
from psaq_jax.evaluation import agreement
from tests.golden_files import GOLDEN, golden, nhwc

pytestmark = pytest.mark.usefixtures("quickly_compiled")

SOURCE = str(GOLDEN / "paper" / "vit")
CALIBRATION = nhwc(golden("paper/vit/reference.npz")["calibration_images"])


@pytest.fixture(scope="module")
def models():
    job = JobConfig(model=SOURCE)
    return pipeline.load_float(job), pipeline.load_float(job, f"hard:{SOURCE}")


@pytest.fixture(scope="module")
def images(models):
    return np.random.default_rng(0).normal(size=(500, *models[0].image_shape)).astype(np.float32)


def agrees(model, images, recipe, weights=6, activations=6):
    ranges = psaq_jax.calibrate(model, CALIBRATION, recipe=recipe)
    q = psaq_jax.quantize(model, ranges, weights, activations, recipe=recipe, images=CALIBRATION)
    return agreement(np.asarray(q(images)), np.asarray(model(images)))


def test_the_copy_computes_the_same(models, images):
    model, copy = models
    np.testing.assert_allclose(copy(images), model(images), atol=1e-4)
    assert copy.source == f"hard:{SOURCE}" and copy.preprocessing == model.preprocessing


def test_the_default_recipe_agrees_as_often_on_the_copy(models, images):
    original, hard = (agrees(model, images, "default") for model in models)
    assert abs(hard - original) < 3  # 500 images; other last bits, other roundings


def test_nor_does_it_fail_there_with_activations_in_floating_point(models, images):
    """Kernels' rows differ as much as the channels that they take, and folding evens them out."""
    original, hard = (agrees(model, images, "default", 4, None) for model in models)
    assert abs(hard - original) < 2


def test_the_papers_recipe_does_not(models, images):
    original, hard = (agrees(model, images, "paper") for model in models)
    assert hard < original - 10
