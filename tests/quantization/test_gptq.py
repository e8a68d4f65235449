"""GPTQ and coordinate descent against plain NumPy, and that they beat what comes before where inputs are correlated."""

import jax.numpy as jnp
import numpy as np
import pytest

from psaq_jax.quantization.gptq import codes_of, coordinate_descent, gptq, searched_scale
from psaq_jax.quantization.quantizers import weight_scale


def problem(inputs=70, outputs=5, seed=0):  # 70: more than one block of 64, and not a multiple
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(400, inputs)) @ generator.normal(size=(inputs, inputs)) / inputs**0.5
    x *= np.exp(generator.normal(size=inputs))
    kernel = generator.normal(size=(inputs, outputs))
    return kernel.astype(np.float32), (x.T @ x / len(x)).astype(np.float32)


def numpy_gptq(kernel, hessian, scale, bits, damping):
    """Frantar et al., algorithm 1, column by column in float64."""
    order = np.argsort(-np.diag(hessian), kind="stable")
    damped = hessian[np.ix_(order, order)].astype(np.float64)
    damped += np.eye(len(order)) * damping * np.diag(hessian).mean()
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T
    rest, codes = kernel[order].astype(np.float64), np.zeros(kernel.shape)
    for i in range(len(order)):
        codes[i] = np.clip(np.rint(rest[i] / scale), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        rest[i:] -= np.outer(upper[i, i:], (rest[i] - codes[i] * scale) / upper[i, i])
    return codes[np.argsort(order)]


def error(kernel, codes, scale, hessian):
    difference = np.asarray(kernel - codes * scale, np.float64)
    return np.trace(difference.T @ hessian @ difference)


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_matches_the_algorithm_column_by_column(bits):
    kernel, hessian = problem()
    scale = np.asarray(weight_scale(kernel, bits))
    codes, _ = gptq(kernel, hessian, scale, jnp.float32(bits), jnp.float32(0.01))
    expected = numpy_gptq(kernel, hessian, scale, bits, 0.01)
    # One weight that falls the other way in float32 sends others after it: nearly all must agree.
    assert (np.asarray(codes) == expected).mean() > 0.97
    np.testing.assert_allclose(error(kernel, codes, scale, hessian), error(kernel, expected, scale, hessian), rtol=0.05)


def test_codes_are_the_targets_rounded():
    kernel, hessian = problem()
    scale = weight_scale(kernel, 4)
    codes, target = gptq(kernel, hessian, scale, jnp.float32(4), jnp.float32(0.01))
    np.testing.assert_array_equal(codes, codes_of(target, scale, 4.0))


def test_beats_rounding_to_nearest():
    kernel, hessian = problem()
    scale = searched_scale(kernel, jnp.diagonal(jnp.asarray(hessian)), jnp.float32(4))
    nearest = codes_of(kernel, scale, 4.0)
    codes, _ = gptq(kernel, hessian, scale, jnp.float32(4), jnp.float32(0.01))
    assert error(kernel, codes, scale, hessian) < 0.6 * error(kernel, nearest, scale, hessian)


def test_inputs_that_never_fire_do_no_harm():
    kernel, hessian = problem()
    hessian[:3], hessian[:, :3] = 0, 0
    scale = 1.01 * weight_scale(kernel, 4)  # off the tie that the largest weight lies on
    codes, _ = gptq(kernel, hessian, scale, jnp.float32(4), jnp.float32(0.01))
    assert np.isfinite(codes).all()
    np.testing.assert_array_equal(codes[:3], codes_of(kernel[:3], scale, 4.0))


def test_searched_scale_is_no_worse_than_the_largest_weight():
    kernel, hessian = problem()
    kernel[0] *= 30  # an outlier that the best grid clips
    curvature = jnp.diagonal(jnp.asarray(hessian)).at[0].set(1e-6)
    full, searched = weight_scale(kernel, 3), searched_scale(kernel, curvature, jnp.float32(3))

    def cost(scale):
        return curvature @ jnp.square(codes_of(kernel, scale, 3.0) * scale - kernel)

    assert (cost(searched) < cost(full)).all()


def numpy_descent(kernel, hessian, codes, scale, bits, damping, sweeps):
    """One weight at a time in float64: the code at which a parabola is least."""
    order, codes = np.argsort(-np.diag(hessian), kind="stable"), codes.astype(np.float64)
    damped = hessian + np.eye(len(kernel), dtype=np.float64) * damping * np.diag(hessian).mean()
    for _ in range(sweeps):
        scale = np.sum(codes * (damped @ kernel), axis=0) / np.sum(codes * (damped @ codes), axis=0)
        for i in order:
            slope = damped[i] @ (kernel - codes * scale)
            best = np.rint(codes[i] + slope / (damped[i, i] * scale))
            codes[i] = np.clip(best, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return codes, scale


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_descent_matches_the_algorithm_weight_by_weight(bits):
    kernel, hessian = problem()
    start = codes_of(kernel, weight_scale(kernel, bits), jnp.float32(bits))
    arguments = jnp.float32(bits), jnp.float32(0.01)
    codes, target, scale = coordinate_descent(kernel, hessian, start, weight_scale(kernel, bits), *arguments, sweeps=2)
    expected, best = numpy_descent(kernel, hessian, np.asarray(start), weight_scale(kernel, bits), bits, 0.01, 2)
    assert (np.asarray(codes) == expected).mean() > 0.97  # as above: one that falls the other way sends others after it
    np.testing.assert_allclose(scale, best, rtol=1e-3)
    np.testing.assert_array_equal(codes, codes_of(target, scale, jnp.float32(bits)))


@pytest.mark.parametrize("seed", range(3))
def test_descent_betters_what_gptq_found_until_no_single_code_can(seed):
    kernel, hessian = problem(seed=seed)
    scale, damped = weight_scale(kernel, 4), hessian + 0.01 * np.eye(70) * np.diag(hessian).mean()
    begun, _ = gptq(kernel, hessian, scale, jnp.float32(4), jnp.float32(0.01))
    errors, codes = [error(kernel, np.asarray(begun), np.asarray(scale), damped)], begun
    for _ in range(8):
        found = coordinate_descent(kernel, hessian, codes, scale, jnp.float32(4), jnp.float32(0.01), sweeps=1)
        codes, _, scale = map(np.asarray, found)
        errors.append(error(kernel, codes, scale, damped))
    assert (np.diff(errors) <= 1e-5 * errors[0]).all() and errors[-1] < 0.99 * errors[0]
    for change in (-1, 1):
        for i in range(70):
            changed = codes.copy()
            changed[i] = np.clip(changed[i] + change, -8, 7)
            for channel in range(5):
                one = codes.copy()
                one[i, channel] = changed[i, channel]
                assert error(kernel, one, scale, damped) >= errors[-1] * (1 - 1e-5)
    for factor in (0.99, 1.01):
        assert error(kernel, codes, scale * factor, damped) > errors[-1] * (1 - 1e-4)


def test_descent_survives_kernels_and_inputs_of_nothing():
    kernel, hessian = problem()
    kernel[:, 0] = 0
    hessian[:3], hessian[:, :3] = 0, 0
    scale = weight_scale(kernel, 4)
    codes = codes_of(kernel, scale, jnp.float32(4))
    for moments in (hessian, np.zeros_like(hessian)):
        found, target, scales = coordinate_descent(kernel, moments, codes, scale, jnp.float32(4), jnp.float32(0.01))
        assert all(np.isfinite(x).all() for x in (found, target, scales)) and (scales > 0).all()
        np.testing.assert_array_equal(found[:, 0], 0)
