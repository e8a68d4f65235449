"""Waves of groups: which groups each has, what is told of them, and from which group on. Nothing is optimized."""

import types

import numpy as np
import pytest

from psaq_jax.errors import InputError
from psaq_jax.synthesis import driver
from psaq_jax.synthesis.balancing import balanced
from psaq_jax.synthesis.config import SynthesisConfig
from psaq_jax.synthesis.loop import TERMS
from tests.quantization.artefacts import random_model
from tests.scaled_copies import scaled

ITERATIONS = 6
DEVICES = "one", "other"


@pytest.fixture
def run(monkeypatch):
    """run(**arguments of synthesize_parts) -> (parts, waves, told, models): each wave's first group, width and seed,
    what progress was told, and the model that each wave took.
    """

    def run_wave(model, config, seed, wave, compiling, tell, checkpoints):
        waves.append((wave.first, wave.width, seed))
        models.append(model)
        for iteration in (4, ITERATIONS):
            if tell:
                tell(iteration)
        groups = np.arange(wave.first, wave.first + wave.width)
        images = np.broadcast_to(groups[:, None, None, None, None], (len(groups), config.group_size, 1, 1, 3))
        terms = dict.fromkeys(TERMS, np.zeros((len(groups), ITERATIONS)))
        seconds = {"first": np.asarray(wave.first), "seconds": np.asarray(2.0)}
        return seconds | {"images": images, "labels": images[:, :, 0, 0, 0]} | terms

    waves, models, told = [], [], []
    monkeypatch.setattr(driver, "_run_wave", run_wave)
    monkeypatch.setattr(driver.meshes, "over", lambda devices: types.SimpleNamespace(everywhere=None))

    def run(groups=5, recipe="paper", model=None, **arguments):
        config = SynthesisConfig(2 * groups, 2, ITERATIONS, recipe=recipe)
        arguments |= {"progress": lambda *at: told.append(at), "devices": DEVICES}
        parts = list(driver.synthesize_parts(model or random_model(), config, **arguments))
        return parts, waves, told, models

    return run


def test_progress_counts_the_iterations_of_all_waves(run):
    """A wave of two groups on two devices, not a group, is what takes the iterations."""
    *_, told, _ = run()
    assert told == [(4, 18), (6, 18), (10, 18), (12, 18), (16, 18), (18, 18)]


def test_the_last_wave_leaves_out_groups_to_spare(run):
    parts, waves, *_ = run(seed=7)
    assert waves == [(0, 2, 7), (2, 2, 7), (4, 2, 7)]
    assert [part["images"][:, 0, 0, 0, 0].tolist() for part in parts] == [[0, 1], [2, 3], [4]]
    assert [len(part[name]) for part in parts for name in ("labels", *TERMS)] == [2] * 10 + [1] * 5


def test_few_groups_take_few_devices(run):
    _, waves, told, _ = run(groups=1)
    assert waves == [(0, 1, 0)] and told == [(4, 6), (6, 6)]


def test_from_a_later_group_on_the_rest_alone(run):
    parts, waves, told, _ = run(first=2)
    assert waves == [(2, 2, 0), (4, 2, 0)] and told[0] == (10, 18) and told[-1] == (18, 18)
    assert [int(part["first"]) for part in parts] == [2, 4]
    assert run(first=5)[0] == []


def test_progress_ends_at_the_end_behind_groups_of_another_number_of_devices(run):
    """Three of them were made by one device, the last two are a wave of two."""
    _, waves, told, _ = run(first=3)
    assert waves == [(3, 2, 0)] and told == [(16, 18), (18, 18)]


@pytest.mark.parametrize("recipe", ["paper", "default"])
def test_recipe_default_balances_values_and_projections(run, recipe):
    given = scaled(random_model())
    *_, (taken,) = run(groups=1, recipe=recipe, model=given)
    expected = balanced(given)
    found, plain, even = (m.params["block_0"]["attention"]["projection"]["kernel"] for m in (taken, given, expected))
    assert (plain != even).any()
    np.testing.assert_array_equal(found, even if recipe == "default" else plain)


def test_a_result_joins_all_parts(run, monkeypatch):
    run(groups=1)  # patches
    model = random_model()
    monkeypatch.setattr(type(model), "image_shape", (1, 1, 3))
    result = driver.synthesize(model, SynthesisConfig(10, 2, ITERATIONS), devices=DEVICES)
    assert result.images[:, 0, 0, 0].tolist() == result.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert result.seconds == 6 and result.seconds_per_iteration == 2 / ITERATIONS


@pytest.mark.parametrize("seed", [-1, 2**31])
def test_a_seed_beyond_int32_is_named(run, seed):
    with pytest.raises(InputError, match=f"seed is {seed}, expected a whole number from 0 to 2147483647"):
        run(seed=seed)
