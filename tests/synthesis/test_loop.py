"""The loop against six recorded steps of the release, and its chunks, terms and settings."""

import dataclasses
import functools
import time

import jax
import numpy as np
import pytest

import psaq_jax
from psaq_jax.synthesis import chunks, driver, loop
from psaq_jax.synthesis.config import SynthesisConfig
from psaq_jax.synthesis.entropy import patch_similarity_entropy
from tests.golden_files import GOLDEN, golden, nhwc, reference_vit

REFERENCE = golden("paper/vit/reference.npz")
TERMS = ("loss", "cross_entropy", "total_variation", "entropy")  # the order of the reference's columns


@pytest.fixture(scope="module")
def model():
    return psaq_jax.load_model(GOLDEN / "paper" / "vit")


@pytest.fixture(scope="module")
def reference():
    return {key.removeprefix("synthesis/"): value for key, value in REFERENCE.items() if key.startswith("synthesis/")}


@jax.jit
def loss_and_gradient(model, images, offset, flip, labels, target):
    def loss(images):
        return loop.objective(model, loop.jitter(images, offset, flip), labels, target)

    return jax.value_and_grad(loss, has_aux=True)(images)


def test_learning_rates_match_the_release():
    rates = [loop.learning_rate(0.2, i, 100, 500) for i in range(500)]
    np.testing.assert_allclose(rates, golden("paper/image_priors.npz")["learning_rate"], rtol=1e-5, atol=1e-8)


def test_six_steps_match_the_release(model, reference):
    """Each from the reference's previous image: left to run free, Adam's division amplifies the last bits."""
    starts = [nhwc(reference["initial"]), *map(nhwc, reference["images"])]
    state = loop.GroupState(starts[0], loop.adam().init(starts[0]), reference["labels"], reference["tv_target"], None)
    base = reference["learning_rates"].max()
    for i in range(6):
        (_, terms), gradient = loss_and_gradient(
            model, starts[i], reference["offsets"][i], reference["flips"][i], state.labels, state.target
        )
        expected = reference["losses_total_ce_tv_entropy_then_layers"][i, :4]
        np.testing.assert_allclose([terms[name] for name in TERMS], expected, rtol=2e-5)  # seen: 2.4e-6
        if i == 0:
            scale = np.abs(reference["step0/grad"]).max()
            # The bandwidth multiplies rounding (see test_entropy); seen: 5.0e-5 of the largest entry.
            np.testing.assert_allclose(gradient / scale, nhwc(reference["step0/grad"]) / scale, atol=1e-4)
        rate = loop.learning_rate(base, i, 2, 6)
        np.testing.assert_allclose(rate, reference["learning_rates"][i], rtol=1e-6)
        state = loop.update(state._replace(variables=starts[i]), gradient, rate)
        # Adam divides by the gradient's size, so a few near-zero gradients turn; seen: mean 4.1e-6.
        assert np.abs(state.variables - starts[i + 1]).mean() < 1e-5


def test_attention_and_layer_entropies_match_the_release(model, reference):
    jittered = loop.jitter(nhwc(reference["initial"]), reference["offsets"][0], reference["flips"][0])
    _, attention = psaq_jax.sites.record(model.module, model.params, jittered, "*/attention_output")
    layers = reference["losses_total_ce_tv_entropy_then_layers"][0, 4:]
    for i, value in enumerate(attention.values()):
        np.testing.assert_allclose(value, reference[f"step0/attention_{i}"], rtol=1e-4, atol=2e-6)  # float32 passes
        np.testing.assert_allclose(patch_similarity_entropy(value), layers[i], rtol=2e-5)


SMALL = SynthesisConfig(num_images=4, group_size=2, iterations=6, jitter=(30, 60))
WAVES = dataclasses.replace(SMALL, recipe="default", parametrization=None)


@pytest.mark.parametrize("config", [SMALL, WAVES])
def test_chunks_do_not_change_the_images(config, monkeypatch):
    model = reference_vit(1)
    whole = psaq_jax.synthesize(model, config, seed=2)
    monkeypatch.setattr(chunks, "LONGEST_CHUNK", 3)
    parts = psaq_jax.synthesize(model, config, seed=2)
    np.testing.assert_array_equal(whole.images, parts.images)


@pytest.mark.parametrize(
    "iterations, expected",
    [(1000, 25), (6, 6), (1, 1), (101, 25), (26, 13), (46, 23), (203, 7), (155, 5), (124, 25)],
)
def test_chunks_add_up(iterations, expected):
    lengths = chunks.chunk_lengths(iterations)
    assert sum(lengths) == iterations and lengths[0] == expected and len(set(lengths)) <= 2 and min(lengths) > 0
    assert chunks.remaining_chunks(iterations, expected) == lengths[1:]


def test_what_is_compiled_counts_once(monkeypatch):
    @functools.lru_cache
    def compile_chunk(*key):
        time.sleep(0.01)
        return key

    monkeypatch.setattr(chunks, "compile_chunk", compile_chunk)
    compiling, seconds = chunks.CompileTime(), []
    for length, value in ((2, 0.0), (2, 1.0), (3, 0.0)):
        run = chunks.compiled({"weights": np.full(3, value)}, np.zeros(2), SMALL, length, None, compiling)
        assert run[:2] == (SMALL, length)
        seconds.append(compiling.seconds)
    assert seconds[1] == seconds[0] >= 0.01 and seconds[2] >= seconds[1] + 0.01


@pytest.mark.parametrize("broken, named", [(("entropy", "loss"), "entropy"), (("loss",), "loss")])
def test_a_term_that_breaks_is_named(broken, named):
    terms = {name: np.zeros((1, 5), np.float32) for name in loop.TERMS}
    for name in broken:
        terms[name][0, 3] = np.nan
    with pytest.raises(psaq_jax.InputError, match=f"stopped: {named} is not finite at iteration 24"):
        driver.check_finite(terms, start=20)


def test_of_terms_that_break_the_first_is_named():
    terms = {name: np.zeros((2, 5), np.float32) for name in loop.TERMS}
    terms["entropy"][0, 3] = terms["cross_entropy"][1, 1] = np.inf
    with pytest.raises(psaq_jax.InputError, match="stopped: cross_entropy is not finite at iteration 2;"):
        driver.check_finite(terms, start=0)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_images": 33}, "num_images is 33, which groups .* don't divide"),
        ({"iterations": 0}, "iterations is 0"),
        ({"rounds": 3}, "jitter"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"recipe": "papper"}, "known are paper, default"),
        ({"bandwidth": 0.0}, "bandwidth is 0.0, expected 0.001 to 1"),
        ({"total_variation": (3.0, 1.0)}, "total_variation"),
    ],
)
def test_bad_settings_are_named(changes, message):
    with pytest.raises(psaq_jax.InputError, match=message):
        SynthesisConfig(**changes)
