"""What a hard copy has that its original lacks; that it computes the same is tested in test_folding.py."""

import numpy as np
import pytest
from flax import traverse_util

from psaq_jax.quantization.hard_copies import hard_copy
from tests.quantization.artefacts import random_model
from tests.random_models import VIT


@pytest.mark.parametrize("changes, special", [({}, 1), ({"distillation_token": True, "head": "distilled"}, 2)])
def test_has_outlier_channels_and_special_tokens_of_a_high_norm(changes, special):
    model = random_model(VIT.clone(width=240, **changes))
    own, hard = (traverse_util.flatten_dict(m.params, sep="/") for m in (model, hard_copy(model)))
    tokens = hard["position_embedding"] - own["position_embedding"]
    expected = 100.0 * (np.arange(len(tokens)) < special)
    np.testing.assert_allclose(tokens, np.broadcast_to(expected[:, None], tokens.shape), atol=1e-5)
    for norm in ("block_0/norm1/scale", "block_0/norm2/scale"):
        factors = np.sort(np.asarray(hard[norm] / own[norm]))
        np.testing.assert_allclose(factors[:-12], 1, rtol=1e-6)  # a twentieth of the channels, from 10 to 100
        assert 9.99 < factors[-12] < 20 and 50 < factors[-1] < 100.01
