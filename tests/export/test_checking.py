"""What an exported file's logits may differ by."""

import dataclasses

import jax
import numpy as np
import pytest

from psaq_jax import InputError
from psaq_jax.export import checking
from tests.export.small_models import VIT, random_model, random_quantized

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
