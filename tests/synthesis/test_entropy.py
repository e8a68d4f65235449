"""Patch-similarity entropy against the release's numbers, and its behaviour at the edges."""

import functools

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


@pytest.mark.parametrize("bandwidth", [0.01, 0.2])
def test_a_tpu_sums_to_the_same_density(bandwidth):
    similarity = np.random.default_rng(0).uniform(-0.3, 1, (3, 7, 11)).astype("f")
    grid = np.linspace(-0.3, 1, 10, dtype="f")
    found, expected = (f(similarity, grid, bandwidth) for f in (entropy._sums_at_once, entropy._sums_in_parts))
    assert found.shape == (3, 10)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


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


@pytest.mark.parametrize("least, bandwidth", [*((x, 0.01) for x in (-0.2, 0.45, 0.65, 0.8, 0.99)), (-0.2, 0.05)])
def test_density_gradient_is_the_derivative(least, bandwidth):
    """Points so far apart that 2, 3 or 5 of them count for a similarity, and so close that all may."""
    similarity = np.random.default_rng(0).uniform(least, 1, (2, 5, 5))
    grid = np.linspace(least, 1, 10)

    def in_numpy(s):
        kernels = np.exp(-((grid[:, None] - s.reshape(2, 1, -1)) ** 2) / (2 * bandwidth**2))
        return kernels.mean(-1) / (bandwidth * np.sqrt(2 * np.pi))

    weights = np.arange(1.0, 21).reshape(2, 10)
    as_float32 = (x.astype("f") for x in (similarity, grid, weights))
    gradient = entropy.density_gradient(*as_float32, bandwidth)
    numeric = np.zeros_like(similarity)
    for index in np.ndindex(similarity.shape):
        step = np.zeros_like(similarity)
        step[index] = 1e-6
        numeric[index] = (weights * (in_numpy(similarity + step) - in_numpy(similarity - step))).sum() / 2e-6
    np.testing.assert_allclose(gradient, numeric, rtol=1e-3, atol=1e-3 * np.abs(numeric).max())  # float32 against 64


@pytest.mark.parametrize("images, bandwidth", [(1, 0.01), (2, 0.01), (4, 0.01), (2, 0.05)])
def test_gradient_is_the_one_of_the_value(images, bandwidth):
    """The closed form against automatic differentiation of the same formulas, with a cotangent that is not 1."""
    attention = np.random.default_rng(4).normal(size=(4, 2, 8, 3)).astype("f")

    def plain(attention):
        similarity = entropy.patch_similarity(attention).reshape(images, -1)
        grid = entropy.similarity_grid(similarity)
        kernels = jnp.exp(-((grid[:, None] - similarity[:, None]) ** 2) / (2 * bandwidth**2))
        smoothed = kernels.mean(-1) / (bandwidth * np.sqrt(2 * np.pi)) + 1e-4
        return -3 * jnp.trapezoid(-smoothed * jnp.log(smoothed), grid).mean()

    def ours(attention):
        return -3 * entropy.patch_similarity_entropy(attention, images, bandwidth=bandwidth)

    value, gradient = jax.value_and_grad(ours)(attention)
    expected_value, expected = jax.value_and_grad(plain)(attention)
    np.testing.assert_allclose(value, expected_value, rtol=1e-5)
    # The bandwidth multiplies rounding a hundredfold.
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_layers_add_up():
    """Of any shapes, in one derivative."""
    layers = [random_attention(shape, i) for i, shape in enumerate(((4, 2, 5, 3), (2, 1, 7, 4), (4, 3, 5, 3)))]

    def one_by_one(layers):
        return sum(entropy.patch_similarity_entropy(x, 2, bandwidth=0.05) for x in layers)

    expected = jax.value_and_grad(one_by_one)(layers)
    found = jax.value_and_grad(lambda layers: entropy.total_entropy(layers, 2, bandwidth=0.05))(layers)
    assert abs(expected[0]) > 0.1
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), found, expected)


@pytest.mark.parametrize("at_once", [1, 200, 2**25])
def test_accelerators_take_layers_of_one_shape_together(monkeypatch, at_once):
    """All, in pairs, or alone, as their similarities take space: what each gives alone."""
    monkeypatch.setattr(entropy, "AT_ONCE", at_once)
    shapes = (4, 2, 5, 3), (2, 1, 7, 4), (4, 2, 5, 3), (4, 2, 5, 3)
    responses = [entropy._responses(random_attention(shape, i), 0) for i, shape in enumerate(shapes)]
    sizes = []

    def each(x):
        sizes.append(x.shape)
        return entropy._entropy_and_gradient(x, 2, 0.05)

    expected = [entropy._entropy_and_gradient(x, 2, 0.05) for x in responses]
    found = entropy._together(each, *responses)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), found, expected)
    assert len(sizes) == {1: 4, 200: 3, 2**25: 2}[at_once]  # traced once for all that are taken together


def random_attention(shape, seed):
    return np.random.default_rng(seed).normal(size=shape).astype("f")


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
        (lambda: entropy.patch_similarity(jnp.zeros((2, 3, 4, 5)), 4), "leaves no patch.*synthesis.recipe=default"),
        (
            lambda: entropy.patch_similarity_entropy(jnp.zeros((4, 3, 4, 5)), images=3),
            "cannot belong to 3 images",
        ),
    ],
)
def test_wrong_shapes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
