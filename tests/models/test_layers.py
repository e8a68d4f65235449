"""The layers on their own, against NumPy in float64: normalisation, softmax and GELU with their derivatives."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from psaq_jax.models import layers, swin

ONES = {"scale": np.ones(16, np.float32), "bias": np.zeros(16, np.float32)}


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def normalised(x, epsilon):
    x = np.float64(x)
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon)


@pytest.mark.parametrize("epsilon", [1e-3, 1e-12])
def test_layer_norm_takes_its_epsilon(epsilon):
    x = np.float32(0.01) * normal(5, 16)
    found = layers.layer_norm("norm", epsilon, jnp.float32).apply({"params": ONES}, x)
    np.testing.assert_allclose(found, normalised(x, epsilon), rtol=1e-5, atol=1e-6)  # atol: near the mean


def test_layer_norm_of_a_large_mean_keeps_its_variance():
    """The mean of squares less the squared mean would be off by a tenth."""
    x = 1000 + normal(5, 16)
    found = layers.layer_norm("norm", 1e-6, jnp.float32).apply({"params": ONES}, x)
    np.testing.assert_allclose(found, normalised(x, 1e-6), atol=2e-4)  # the mean of float32 is off by 1e-4


def test_mergings_normalise_with_an_epsilon_of_their_own():
    """1e-5, as the published code's, whatever the config says; the channels' variance is as small."""
    x = np.float32(0.003) * normal(1, 2, 2, 4)
    params = {"norm": ONES, "reduction": {"kernel": np.eye(16, 8, dtype=np.float32)}}
    found = swin.PatchMerging().apply({"params": params}, x)
    four = x[0, [0, 1, 0, 1], [0, 0, 1, 1]].reshape(-1)  # column by column
    np.testing.assert_allclose(found[0, 0, 0], normalised(four, 1e-5)[:8], rtol=1e-5, atol=1e-6)


def softmax64(x):
    weights = np.exp(np.float64(x) - np.max(x, -1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


@pytest.mark.parametrize("offset", [0, 500, -500])
def test_softmax_of_logits_that_exp_would_overflow_at(offset):
    x = 3 * normal(4, 7) + offset
    np.testing.assert_allclose(layers.softmax(x), softmax64(x), rtol=1e-5)


def test_softmax_is_computed_in_float32():
    """And its derivative has the logits' type, as any function's of them."""
    x = jnp.asarray(3 * normal(4, 64), jnp.bfloat16)
    found = layers.softmax(x)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, softmax64(x), rtol=1e-5)
    assert jax.grad(lambda x: layers.softmax(x)[0, 0])(x).dtype == jnp.bfloat16


def test_softmaxs_derivative():
    x, cotangent = normal(3, 6), normal(3, 6, seed=1)
    p = softmax64(x)
    expected = p * (cotangent - np.sum(p * cotangent, -1, keepdims=True))
    found = jax.grad(lambda x: jnp.sum(layers.softmax(x) * cotangent))(x)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)  # atol: differences of terms of order 0.1


def test_gelus_derivative():
    x = np.linspace(-4, 4, 33, dtype=np.float32)
    cumulative = np.array([(1 + math.erf(v / math.sqrt(2))) / 2 for v in x])
    expected = cumulative + x * np.exp(-np.square(np.float64(x)) / 2) / math.sqrt(2 * math.pi)
    value, derivative = jax.vmap(jax.value_and_grad(layers.gelu))(x)
    np.testing.assert_allclose(derivative, expected, rtol=1e-5, atol=1e-6)  # atol: 1 + erf near −4
    np.testing.assert_allclose(value, x * cumulative, rtol=1e-5, atol=1e-6)
