"""Patch-similarity entropy against the release's numbers, and its behaviour at the edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from psaq_jax.synthesis import entropy
from tests.golden_files import golden

REFERENCE = golden("paper/patch_similarity_entropy.npz")
CASES = {"vit": None, "vit_smooth": None, "swin": 2}


def case(name):
    return {key.removeprefix(name + "/"): value for key, value in REFERENCE.items() if key.startswith(name + "/")}


@pytest.mark.parametrize("name", CASES)
def test_similarity_and_grid_match_the_release(name):
    ref = case(name)
    similarity = entropy.patch_similarity(ref["attention"])
    np.testing.assert_allclose(similarity, ref["similarity"], rtol=1e-5, atol=1e-6)  # cosines of up to 16 float32 sums
    np.testing.assert_allclose(entropy.similarity_grid(similarity), ref["grid"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name, images", CASES.items())
def test_density_matches_the_release(name, images):
    ref = case(name)
    groups = ref["similarity"].reshape(images or len(ref["similarity"]), -1)
    density = entropy.kernel_density(groups, ref["grid"])
    # A similarity wrong in its last bit (6e-8) moves exp(-(x-s)^2/2h^2) by up to 6e-8/h times a few.
    np.testing.assert_allclose(density, ref["density"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name, images", CASES.items())
def test_entropy_and_gradient_match_the_release(name, images):
    ref = case(name)
    value, gradient = jax.jit(jax.value_and_grad(entropy.patch_similarity_entropy), static_argnums=1)(
        ref["attention"], images
    )
    np.testing.assert_allclose(value, ref["entropy"], rtol=2e-5)  # seen: 4e-6
    scale = np.abs(ref["grad_attention"]).max()
    # The bandwidth of 0.01 multiplies the rounding of similarities a hundredfold; seen: 2.6e-5.
    np.testing.assert_allclose(gradient / scale, ref["grad_attention"] / scale, atol=1e-4)


METHODS = {  # of computing the kernel, by the distance of the grid's points in bandwidths
    entropy._by_powers: (1e-3, 0.2, 1, entropy.NARROW),
    entropy._each_point: (entropy.NARROW, 4, entropy.WIDE),
    entropy._by_nearest: (entropy.WIDE, 12, 22),
}


@pytest.mark.parametrize("method, distance", [(f, x) for f, distances in METHODS.items() for x in distances])
def test_every_method_gives_the_kernel(method, distance):
    grid = (np.arange(-9, 1) * distance * entropy.BANDWIDTH + 1).astype("f")
    similarity = np.random.default_rng(0).uniform(grid[0], grid[-1], (2, 50, 50)).astype("f")
    similarity[0, 0, :2] = grid[0], grid[-1]
    kernel = jax.jit(lambda s, x: jnp.stack([method(s, x)(k) for k in range(10)]))(similarity, grid)
    expected = np.exp(-((grid[:, None, None, None].astype(float) - similarity) ** 2) / 2e-4)
    np.testing.assert_allclose(kernel, expected, atol=2e-5)  # a grid point's last bit, 6e-8, is 6e-6 bandwidths


@pytest.mark.parametrize("images", [1, 2, 4])
@pytest.mark.parametrize("spread", [0.05, 0.1, 0.3, 3])
def test_gradient_is_the_one_of_the_value(images, spread):
    """The closed form, by each method, against automatic differentiation of the formulas; a cotangent that is not 1."""
    attention = (1 + spread * np.random.default_rng(4).normal(size=(4, 2, 8, 3))).astype("f")

    def plain(attention):
        similarity = entropy.patch_similarity(attention).reshape(images, -1)
        grid = entropy.similarity_grid(similarity)
        kernels = jnp.exp(-((grid[:, None] - similarity[:, None]) ** 2) / 2e-4)
        smoothed = kernels.mean(-1) / (0.01 * np.sqrt(2 * np.pi)) + 1e-4
        return -3 * jnp.trapezoid(-smoothed * jnp.log(smoothed), grid).mean()

    value, gradient = jax.value_and_grad(lambda a: -3 * entropy.patch_similarity_entropy(a, images))(attention)
    expected_value, expected = jax.value_and_grad(plain)(attention)
    # A similarity's last bit, which the compiler may round otherwise, is part of a span that goes with spread².
    rounding = 5e-7 / spread**2
    np.testing.assert_allclose(value, expected_value, rtol=1e-5 + rounding)
    tolerance = 1e-4 + rounding  # the bandwidth multiplies rounding a hundredfold
    np.testing.assert_allclose(gradient, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())


def test_zero_patches_have_finite_gradients():
    attention = np.random.default_rng(1).normal(size=(2, 3, 7, 4)).astype("f")
    attention[0, :, 3] = 0
    gradient = jax.grad(entropy.patch_similarity_entropy)(attention)
    assert np.isfinite(gradient).all()


def test_windows_of_one_image_are_pooled():
    attention = np.random.default_rng(2).normal(size=(8, 2, 5, 4)).astype("f")
    pooled = entropy.patch_similarity_entropy(attention, images=2)
    similarity = np.asarray(entropy.patch_similarity(attention)).reshape(2, -1)
    grid = entropy.similarity_grid(similarity)
    smoothed = np.asarray(entropy.kernel_density(similarity, grid)) + 1e-4
    expected = np.trapezoid(-smoothed * np.log(smoothed), grid).mean()
    np.testing.assert_allclose(pooled, expected, rtol=1e-5)


def test_layers_of_several_shapes_add_up():
    rng = np.random.default_rng(5)
    layers = [rng.normal(size=shape).astype("f") for shape in [(4, 2, 9, 3), (2, 4, 5, 6), (4, 3, 9, 3), (2, 4, 5, 6)]]
    total, gradients = jax.jit(jax.value_and_grad(lambda x: entropy.total_patch_similarity_entropy(x, 2)))(layers)
    of_one = jax.jit(jax.value_and_grad(lambda x: entropy.patch_similarity_entropy(x, 2)))
    alone = [of_one(layer) for layer in layers]
    np.testing.assert_allclose(total, sum(value for value, _ in alone), rtol=1e-6)
    for gradient, (_, expected) in zip(gradients, alone, strict=True):
        # The bandwidth multiplies rounding a hundredfold.
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("special", [0, 1, 2, 5])
def test_special_tokens_are_left_out(special):
    attention = np.random.default_rng(3).normal(size=(2, 3, 9, 4)).astype("f")
    assert entropy.patch_similarity(attention, special).shape == (2, 9 - special, 9 - special)
    np.testing.assert_array_equal(
        entropy.patch_similarity(attention, special), entropy.patch_similarity(attention[:, :, special:], 0)
    )


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: entropy.patch_similarity(jnp.zeros((2, 3, 4))), "expected .batch, heads, tokens, head_dim."),
        (lambda: entropy.patch_similarity(jnp.zeros((2, 3, 4, 5)), 4), "leaves no patch"),
        (
            lambda: entropy.patch_similarity_entropy(jnp.zeros((4, 3, 4, 5)), images=3),
            "cannot belong to 3 images",
        ),
    ],
)
def test_wrong_shapes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_no_pass_holds_grid_by_tokens_by_tokens():
    attention = jax.ShapeDtypeStruct((2, 3, 50, 8), jnp.float32)
    text = jax.jit(jax.grad(entropy.patch_similarity_entropy)).lower(attention).compile().as_text()
    assert "10,49,49" not in text and "49,49,10" not in text
