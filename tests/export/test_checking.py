"""What an exported file's logits may differ by."""

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
