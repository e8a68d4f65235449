"""Rounding by the moments on both sides against plain NumPy, one weight at a time."""

import jax.numpy as jnp
import numpy as np
import pytest

from psaq_jax.quantization.gptq import codes_of, gptq
from psaq_jax.quantization.quantizers import weight_scale
from psaq_jax.quantization.two_sided import CORRELATED, two_sided

pytestmark = pytest.mark.usefixtures("quickly_compiled")

SHAPES = [(40, 70), (70, 40), (30, 30), (1, 6), (6, 1)]


def moments(width, generator):
    rows = generator.normal(size=(400, width)) @ generator.normal(size=(width, width)) / width**0.5
    rows *= np.exp(generator.normal(size=width))
    return (rows.T @ rows / len(rows)).astype(np.float32)


def problem(inputs, outputs, seed=0):
    """(kernel, moments of the inputs, moments of the gradients)."""
    generator = np.random.default_rng(seed)
    kernel = generator.normal(size=(inputs, outputs)).astype(np.float32)
    return kernel, moments(inputs, generator), moments(outputs, generator)


def damped(inputs, outputs, damping):
    """What is minimised, in float64."""
    inputs, outputs = inputs.astype(np.float64), outputs.astype(np.float64)
    inputs = inputs + damping * np.diag(inputs).mean() * np.eye(len(inputs))
    return inputs, CORRELATED * outputs + (1 - CORRELATED) * np.diag(np.diag(outputs))


def error(kernel, codes, scale, inputs, outputs):
    difference = np.asarray(kernel - np.asarray(codes) * np.asarray(scale), np.float64)
    return np.trace(outputs @ difference.T @ inputs @ difference)


def numpy_two_sided(kernel, inputs, outputs, scale, bits, damping):
    """Weight by weight, row by row: the residual (1 + U)ᵀ E (1 + V) of each is as small as its own grid lets it."""
    inputs, outputs = damped(inputs, outputs, damping)
    rows = np.argsort(-np.diag(inputs), kind="stable")
    columns = np.argsort(-np.diag(outputs) * np.square(scale), kind="stable")

    def unit_upper(matrix):
        lower = np.linalg.cholesky(matrix[::-1, ::-1])
        return (lower / np.diag(lower))[::-1, ::-1]

    left, right = unit_upper(inputs[np.ix_(rows, rows)]), unit_upper(outputs[np.ix_(columns, columns)])
    weights, scale = kernel[np.ix_(rows, columns)].astype(np.float64), scale[columns]
    errors, codes = np.zeros_like(weights), np.zeros_like(weights)
    for i in range(len(rows)):
        for j in range(len(columns)):
            errors[i, j] = 0
            asked = left[: i + 1, i] @ errors[: i + 1, : j + 1] @ right[: j + 1, j]
            code = np.rint((weights[i, j] + asked) / scale[j])
            codes[i, j] = np.clip(code, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
            errors[i, j] = weights[i, j] - codes[i, j] * scale[j]
    return codes[np.ix_(np.argsort(rows), np.argsort(columns))]


@pytest.mark.parametrize("bits", [3, 4, 6])
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_the_algorithm_weight_by_weight(shape, bits):
    kernel, inputs, outputs = problem(*shape)
    scale = np.asarray(0.7 * weight_scale(kernel, bits))  # some weights are clipped
    codes, target = two_sided(kernel, inputs, outputs, scale, jnp.float32(bits), jnp.float32(0.05))
    expected = numpy_two_sided(kernel, inputs, outputs, scale, bits, 0.05)
    # One weight that falls the other way in float32 sends others after it: nearly all must agree.
    assert (np.asarray(codes) == expected).mean() > 0.97
    sides = damped(inputs, outputs, 0.05)
    np.testing.assert_allclose(error(kernel, codes, scale, *sides), error(kernel, expected, scale, *sides), rtol=0.03)
    np.testing.assert_array_equal(codes, codes_of(target, scale, jnp.float32(bits)))


@pytest.mark.parametrize("shape", SHAPES)
def test_is_gptq_where_outputs_have_nothing_to_do_with_each_other(shape):
    kernel, inputs, outputs = problem(*shape)
    scale, arguments = weight_scale(kernel, 4), (jnp.float32(4), jnp.float32(0.1))
    codes, _ = two_sided(kernel, inputs, np.diag(np.diag(outputs)), scale, *arguments)
    expected, _ = gptq(kernel, inputs, scale, *arguments)
    assert (np.asarray(codes) == np.asarray(expected)).mean() > 0.97


@pytest.mark.parametrize("seed", range(3))
def test_combinations_of_outputs_that_count_err_less_than_gptq_leaves_them(seed):
    kernel, inputs, outputs = problem(60, 50, seed)
    scale, arguments = weight_scale(kernel, 4), (jnp.float32(4), jnp.float32(0.1))
    codes, _ = two_sided(kernel, inputs, outputs, scale, *arguments)
    alone, _ = gptq(kernel, inputs, scale, *arguments)
    # By the very moments, of which the rounding trusts a part.
    assert error(kernel, codes, scale, inputs, outputs) < 0.75 * error(kernel, alone, scale, inputs, outputs)


def test_factors_of_the_moments_change_nothing():
    kernel, inputs, outputs = problem(40, 30)
    scale, arguments = weight_scale(kernel, 4), (jnp.float32(4), jnp.float32(0.1))
    codes, _ = two_sided(kernel, inputs, outputs, scale, *arguments)
    others, _ = two_sided(kernel, 2.0**-20 * inputs, 2.0**20 * outputs, scale, *arguments)
    np.testing.assert_array_equal(codes, others)


def test_scaled_outputs_have_the_same_codes():
    """A channel made larger before a layer and smaller behind it: weights grow, gradients shrink."""
    kernel, inputs, outputs = problem(40, 30)
    factors = np.float32(2.0) ** np.random.default_rng(1).integers(-6, 7, size=30).astype(np.float32)
    scale, arguments = weight_scale(kernel, 4), (jnp.float32(4), jnp.float32(0.1))
    codes, _ = two_sided(kernel, inputs, outputs, scale, *arguments)
    others, _ = two_sided(kernel * factors, inputs, outputs / np.outer(factors, factors), scale * factors, *arguments)
    assert (np.asarray(codes) == np.asarray(others)).mean() > 0.97


def test_survives_kernels_inputs_and_outputs_of_nothing():
    kernel, inputs, outputs = problem(20, 30)
    kernel[:, 0] = 0
    for zeros in (slice(3), slice(None)):
        inputs[zeros], inputs[:, zeros], outputs[zeros], outputs[:, zeros] = 0, 0, 0, 0
        scale = jnp.maximum(weight_scale(kernel, 4), 1e-12)
        codes, target = two_sided(kernel, inputs, outputs, scale, jnp.float32(4), jnp.float32(0.1))
        assert np.isfinite(codes).all() and np.isfinite(target).all()
    np.testing.assert_array_equal(codes, codes_of(kernel, scale, 4.0))  # nothing is known: to nearest
