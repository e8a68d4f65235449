"""Total variation, clip, jitter and flip against the release's numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from psaq_jax.synthesis import priors
from tests.golden_files import golden, nhwc

REFERENCE = golden("paper/image_priors.npz")


def test_total_variation_and_gradient_match_the_release():
    images = nhwc(REFERENCE["tv/images"])
    value, gradient = jax.value_and_grad(priors.total_variation)(images)
    np.testing.assert_allclose(value, REFERENCE["tv/value"], rtol=1e-6)
    np.testing.assert_allclose(gradient, nhwc(REFERENCE["tv/grad"]), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("shape", [(1, 1, 2, 3), (3, 2, 5, 1), (7, 6, 4, 3), (12, 3, 1, 2)])
def test_total_variation_is_its_definition(shape):
    """Any batch, also one that does not split into equal parts, and images with hardly a neighbour."""
    images = np.random.default_rng(1).normal(size=shape).astype("f")

    def plain(x):
        differences = (
            x[:, :, :-1] - x[:, :, 1:], x[:, :-1] - x[:, 1:],
            x[:, :-1, 1:] - x[:, 1:, :-1], x[:, :-1, :-1] - x[:, 1:, 1:],
        )  # fmt: skip
        return -2 * sum(jnp.sqrt(jnp.sum(d * d)) for d in differences if d.size)

    value, gradient = jax.value_and_grad(lambda x: -2 * priors.total_variation(x))(images)
    expected_value, expected = jax.value_and_grad(plain)(images)
    np.testing.assert_allclose(value, expected_value, rtol=1e-6)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6)


def test_a_tpu_sums_to_the_same_total_variation():
    images = nhwc(REFERENCE["tv/images"])
    value = np.sqrt(priors._squares_at_once(images)).sum()
    np.testing.assert_allclose(value, REFERENCE["tv/value"], rtol=1e-6)


def test_total_variation_of_flat_images_has_gradient_zero():
    np.testing.assert_array_equal(jax.grad(priors.total_variation)(np.ones((2, 8, 8, 3), np.float32)), 0)


def test_clip_matches_the_release_exactly():
    np.testing.assert_array_equal(priors.clip(nhwc(REFERENCE["clip/images"])), nhwc(REFERENCE["clip/clipped"]))


def test_clip_with_a_models_own_range():
    wide = np.linspace(-9, 9, 2 * 4 * 4 * 3, dtype=np.float32).reshape(2, 4, 4, 3)
    clipped = priors.clip(wide, (0.5,) * 3, (0.25,) * 3)
    assert clipped.min() == -2 and clipped.max() == 2


def test_roll_and_flip_match_the_release_exactly():
    images = nhwc(REFERENCE["jitter/images"])
    np.testing.assert_array_equal(priors.jitter(images, 3, False), nhwc(REFERENCE["jitter/rolled_3"]))
    np.testing.assert_array_equal(priors.jitter(images, -2, True), nhwc(REFERENCE["jitter/rolled_minus_2_flipped"]))


@pytest.mark.parametrize("flip", [True, False])
def test_gradients_flow_back_through_flip_and_roll(flip):
    images = nhwc(REFERENCE["jitter/images"])
    weights = np.random.default_rng(0).normal(size=images.shape).astype("f")
    gradient = jax.grad(lambda x: (priors.jitter(x, 3, flip) * weights).sum())(images)
    back = weights[:, :, ::-1] if flip else weights
    np.testing.assert_array_equal(gradient, np.roll(back, (-3, -3), (1, 2)))
