"""The paper's quantizers against the release's numbers: grids and scales exactly, jitted or not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from psaq_jax.errors import InputError
from psaq_jax.quantization import quantizers
from psaq_jax.quantization.representation import UniformQuantizer
from tests.golden_files import golden

REFERENCE = golden("paper/quantizers.npz")
ACTIVATIONS = ("signed", "gelu", "softmax", "positive", "negative", "constant_zero")
CHANNELS_LAST = {"linear": (1, 0), "conv": (2, 3, 1, 0)}


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jitted"])
@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("kind", CHANNELS_LAST)
def test_weight_grids_match_the_release_exactly(kind, bits, jit):
    weights = REFERENCE[f"weights/{kind}/input"].transpose(CHANNELS_LAST[kind])
    codes, scale = quantizers.quantize_weights(weights, bits)
    np.testing.assert_array_equal(scale, REFERENCE[f"weights/{kind}/w{bits}_scale"])
    assert codes.min() >= -(2 ** (bits - 1)) and codes.max() <= 2 ** (bits - 1) - 1
    fake = (jax.jit(quantizers.fake_quantize_weights) if jit else quantizers.fake_quantize_weights)(weights, bits)
    np.testing.assert_array_equal(fake, REFERENCE[f"weights/{kind}/w{bits}"].transpose(CHANNELS_LAST[kind]))


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jitted"])
@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_activation_grids_match_the_release_exactly(kind, bits, jit):
    minimum, maximum = REFERENCE[f"activations/{kind}/min_max"]
    found = quantizers.activation_scale(minimum, maximum, bits)
    np.testing.assert_array_equal(found, REFERENCE[f"activations/{kind}/a{bits}_scale_zero_point"])
    models_own = UniformQuantizer(*found, jnp.float32(bits)).__call__
    public = functools.partial(quantizers.fake_quantize_activations, minimum=minimum, maximum=maximum, bits=bits)
    for function in (models_own, public):
        fake = (jax.jit(lambda x, f=function: f(x)) if jit else function)(REFERENCE[f"activations/{kind}/test"])
        np.testing.assert_array_equal(fake, REFERENCE[f"activations/{kind}/a{bits}"])


def test_the_calibration_range_is_the_input_s():
    for kind in ACTIVATIONS:
        x = REFERENCE[f"activations/{kind}/input"]
        np.testing.assert_array_equal(REFERENCE[f"activations/{kind}/min_max"], (x.min(), x.max()))


def test_division_is_division_under_jit():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(64, 33)).astype("f"), rng.uniform(0.1, 3, 33).astype("f")
    np.testing.assert_array_equal(jax.jit(quantizers.divide)(a, b), a / b)


def test_all_zero_channels_stay_zero():
    weights = np.zeros((5, 3), np.float32)
    weights[:, 1] = 1
    fake = np.asarray(quantizers.fake_quantize_weights(weights, 4))
    assert (fake[:, [0, 2]] == 0).all() and np.isfinite(fake).all()


@pytest.mark.parametrize("bits", [1, 9, 0, -4, 4.0, "8", True, None])
def test_impossible_bits_are_named(bits):
    with pytest.raises(InputError, match="weight_bits is .*expected a whole number of bits from 2 to 8"):
        quantizers.check_bits(bits, "weight_bits")


def test_weights_have_a_grid_of_any_bits():
    weights = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    errors = [np.abs(quantizers.fake_quantize_weights(weights, bits) - weights).max() for bits in (8, 9, 12, 16)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-4
