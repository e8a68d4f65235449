"""The loop's promises however it is compiled: seeds, groups, compilations, the loss, the pixels, the bandwidth."""

import dataclasses

import jax
import numpy as np
import pytest

import psaq_jax
from psaq_jax.synthesis import driver, loop
from psaq_jax.synthesis.config import SynthesisConfig
from tests.golden_files import reference_vit

pytestmark = pytest.mark.usefixtures("quickly_compiled")

SMALL = SynthesisConfig(num_images=4, group_size=2, iterations=6, jitter=(30, 60))


@pytest.fixture(scope="module")
def model():
    return reference_vit(1)


def test_equal_seeds_give_equal_images_and_others_do_not(model):
    first, again = (psaq_jax.synthesize(model, SMALL, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first.images, again.images)
    assert np.abs(psaq_jax.synthesize(model, SMALL, seed=4).images - first.images).max() > 0.1
    assert first.images.shape == (4, 32, 32, 3) and first.images.dtype == np.float32
    assert {name: len(values) for name, values in first.history.items()} == dict.fromkeys(loop.TERMS, 6)


def test_groups_do_not_depend_on_each_other(model):
    both = psaq_jax.synthesize(model, SMALL, seed=1)
    one = psaq_jax.synthesize(model, SynthesisConfig(num_images=2, group_size=2, iterations=6, jitter=(30, 60)), seed=1)
    np.testing.assert_array_equal(both.images[:2], one.images)


def test_history_is_the_mean_over_groups_and_an_iteration_s_time_that_of_one_wave(model):
    """On one device each of the two groups is a wave, and both have their own seconds."""
    one = tuple(jax.local_devices()[:1])
    result = psaq_jax.synthesize(model, SMALL, seed=3, devices=one)
    parts = list(driver.synthesize_parts(model, SMALL, 3, devices=one))
    assert [len(part["images"]) for part in parts] == [1, 1]
    for name in loop.TERMS:
        groups = np.concatenate([part[name] for part in parts])
        assert (groups[0] != groups[1]).all()
        np.testing.assert_allclose(result.history[name], groups.astype(np.float64).mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(result.seconds_per_iteration, result.seconds / (2 * 6))


def test_new_seeds_compile_nothing(model, compilations):
    psaq_jax.synthesize(model, SMALL, seed=5)
    with compilations() as count:
        psaq_jax.synthesize(model, SMALL, seed=6)
    assert count() == 0


@pytest.mark.parametrize("changes", [{}, {"recipe": "default"}])
def test_the_loss_falls(changes, model):
    config = SynthesisConfig(num_images=4, group_size=4, iterations=60, **changes)
    history = psaq_jax.synthesize(model, config, seed=0).history["loss"]
    assert history[-5:].mean() < history[:5].mean()


@pytest.mark.parametrize("changes", [{}, {"rescale_factor": 1.0, "mean": (127.5,) * 3, "std": (127.5,) * 3}])
@pytest.mark.parametrize("parametrization", ["pixels", "frequencies"])
def test_recipe_default_keeps_to_the_models_own_pixels(parametrization, model, changes):
    model = model.replace(preprocessing=dataclasses.replace(model.preprocessing, **changes))
    config = SynthesisConfig(2, 2, 4, recipe="default", parametrization=parametrization)
    images = psaq_jax.synthesize(model, config).images
    lower, upper = model.preprocessing.lower, model.preprocessing.upper
    assert (images >= lower - 1e-6).all() and (images <= upper + 1e-6).all()
    assert images.max() - images.min() > 0.5 * (upper - lower).min(), "and uses them"


def test_a_loss_that_overflows_stops_with_iteration_and_term(model):
    model = model.replace(params=jax.tree.map(lambda x: x * np.float32(1e30), model.params), source=model.source)
    with pytest.raises(psaq_jax.InputError, match="cross_entropy.* not finite at iteration 1"):
        psaq_jax.synthesize(model, SynthesisConfig(num_images=2, group_size=2, iterations=4))
