"""What an exported file's logits may differ by."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from psaq_jax import InputError
from psaq_jax.export import checking
from tests.export.small_models import random_model, random_quantized
from tests.random_models import VIT, random_pixels

pytestmark = pytest.mark.usefixtures("quickly_compiled")


@pytest.fixture(scope="module")
def q():
    return random_quantized(VIT.clone(classes=1, depth=4))


def test_roundings_that_turn_are_no_error_where_there_are_few_logits(q, monkeypatch):
    monkeypatch.setattr(checking, "NUDGE", 2**-8)  # a model as small turns few roundings
    pixels = np.asarray(jax.random.normal(jax.random.key(0), (4, *VIT.image_size, 3)))
    own = checking.turned_roundings(q, pixels, np.asarray(q(pixels)))
    monkeypatch.setattr(checking, "step", lambda *_: own / 1000)
    assert 0 < own < 0.5 * np.ptp(q(pixels))
    assert checking.check(lambda x: np.asarray(q(x)) + own, q, "FILE")["tolerance"] == pytest.approx(4 * own)
    with pytest.raises(InputError, match="FILE: its logits are .* off on average"):
        checking.check(lambda x: np.asarray(q(x)) + 5 * own, q, "FILE")


def test_a_step_is_none_either(q):
    pixels = np.zeros((1, *VIT.image_size, 3), np.float32)
    step = checking.step(q, q(pixels))
    assert checking.check(lambda x: np.asarray(q(x)) + 0.9 * step, q, "FILE")["tolerance"] == pytest.approx(step)
    model = random_model()
    with pytest.raises(InputError, match="off on average"):
        checking.check(lambda x: np.asarray(model(x)) * 1.01, model, "FILE")


@pytest.mark.parametrize("recipe, bits", [("paper", 3), ("default", 2)])
def test_a_step_of_few_bits_excuses_no_other_model(recipe, bits):
    """It is as large as the logits are."""
    q = random_quantized(VIT, 4, bits, recipe)
    logits = np.asarray(q(random_pixels()))
    assert checking.step(q, logits) > 0.5 * np.abs(logits - logits.mean()).mean() > 0
    assert checking.check(q, q, "FILE")["mean_difference"] < 0.2 * np.std(logits)
    for damage in (np.zeros_like, lambda logits: logits[:, ::-1]):
        with pytest.raises(InputError, match="off on average"):
            checking.check(lambda pixels, damage=damage: damage(np.asarray(q(pixels))), q, "FILE")


def test_what_is_told_of_a_trial():
    """Both batch sizes are tried; one logit of 20 that is off by a tenth of what the mean may be."""
    model, sizes = random_model(), []

    def run(pixels):
        sizes.append(len(pixels))
        logits = np.array(model(pixels))
        logits[0, 0] += 1e-4 * (len(pixels) == 1)
        return logits

    found = checking.check(run, model, "FILE")
    assert sizes == [1, 3] and found["images"] == 4
    # Batches of another size are summed in another order: a few times float32's last bit of logits near 1.
    assert found["largest_difference"] == pytest.approx(1e-4, abs=1e-5)
    assert found["mean_difference"] == pytest.approx(1e-4 / 20, abs=2e-6)


@pytest.mark.parametrize("damage, message", [
    (lambda logits: logits[:, :4], r"FILE: its logits are \(4, 4\), expected \(4, 5\); not exported"),
    (lambda logits: np.where(np.arange(5) == 2, np.nan, logits), "FILE: its logits are not all finite; not exported"),
    (lambda logits: np.where(np.arange(5) == 2, np.inf, logits), "FILE: its logits are not all finite; not exported"),
])  # fmt: skip
def test_logits_that_are_none_are_not_exported(damage, message):
    model = random_model()
    with pytest.raises(InputError, match=message):
        checking.check(lambda pixels: damage(np.asarray(model(pixels))), model, "FILE")


@pytest.mark.parametrize("bits, codes", [(8, 255), (4, 15), (None, 255)])
def test_where_logits_are_no_site_a_step_is_of_their_range(q, bits, codes):
    sites = {name: grid for name, grid in q.sites.items() if name != "logits"}
    without = dataclasses.replace(q, sites=sites, activation_bits=bits)
    assert checking.step(without, np.array([[-1.0, 2.0]])) == pytest.approx(3 / codes)
    assert checking.step(random_model(), np.array([[-1.0, 2.0]])) == pytest.approx(3e-3)


def nudged(q, pixels, change):
    """The logits of a model whose float parameters are that part larger."""
    larger = jax.tree.map(lambda x: x * (1 + change) if jnp.issubdtype(x.dtype, jnp.floating) else x, q.params)
    return np.asarray(dataclasses.replace(q, params=larger)(pixels))


def test_turned_roundings_are_a_mean_of_three_nudges(q, monkeypatch):
    monkeypatch.setattr(checking, "NUDGE", 2**-8)
    pixels = random_pixels()
    logits = np.asarray(q(pixels))
    each = [np.abs(nudged(q, pixels, change) - logits).mean() for change in (2**-8, -(2**-8), 2**-9)]
    assert np.mean(each) < 0.9 * max(each)
    np.testing.assert_allclose(checking.turned_roundings(q, pixels, logits), np.mean(each), rtol=1e-5)


def test_nudges_are_no_less_than_half_precision_tells_apart(monkeypatch):
    """bfloat16 has 8 significant bits, float16 has 11."""
    q, pixels = random_quantized(VIT.clone(dtype=jnp.bfloat16)), random_pixels()
    found = []
    for nudge in (2**-20, 2**-7, 2**-5):
        monkeypatch.setattr(checking, "NUDGE", nudge)
        found.append(checking.turned_roundings(q, pixels, np.asarray(q(pixels), np.float32)))
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("dtype, part", [(jnp.float32, 1e-3), (jnp.bfloat16, 4 * 2**-7), (jnp.float16, 4 * 2**-10)])
def test_float_logits_may_differ_by_a_part_of_their_range(dtype, part):
    assert checking.step(random_model(VIT.clone(dtype=dtype)), np.array([[-1.0, 2.0]])) == pytest.approx(3 * part)
