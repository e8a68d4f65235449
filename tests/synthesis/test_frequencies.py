"""Images by their frequencies: in natural images' measure, within what pixels can be, one transform there and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import psaq_jax
from psaq_jax.synthesis import frequencies

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NOISE = np.random.default_rng(0).normal(size=(8, 24, 32, 3)).astype(np.float32)


def before_squashing(coefficients, white=1.0):
    images = np.asarray(frequencies.images(jnp.asarray(coefficients), MEAN, STD, white), np.float64)
    pixels = (images * STD + MEAN) / white
    assert (pixels > -1e-6).all() and (pixels < 1 + 1e-6).all()
    return np.arctanh((2 * pixels - 1).clip(-1 + 1e-7, 1 - 1e-7)) / frequencies.contrasts(len(pixels))


@pytest.mark.parametrize("white", [1.0, 255.0])
def test_noise_becomes_images_whose_amplitudes_fall_as_the_inverse_of_the_frequency(white):
    pixels = before_squashing(NOISE * 0.1, white) * 10  # a tenth as strong: nothing is squashed beyond recognition
    assert 0.8 < pixels.std() < 1.2
    brightness = pixels.mean(axis=-1)
    powers = (np.abs(np.fft.fft2(brightness, axes=(1, 2))) ** 2).mean(axis=0)
    frequency = np.hypot(np.fft.fftfreq(24)[:, None], np.fft.fftfreq(32))
    fit = np.polyfit(np.log(frequency.ravel()[1:]), np.log(powers.ravel()[1:]), 1)
    assert abs(fit[0] + 2) < 0.1
    assert pixels.std(axis=-1).mean() < 0.5 * brightness.std(), "and brightness is most of them"


def test_coefficients_are_coordinates_of_one_length():
    """The transform is linear before the squashing, symmetric, and its own inverse but for amplitudes and colours."""
    one = np.zeros((1, 24, 32, 3), np.float32)
    one[0, 3, 5, 0] = 0.5
    waves = before_squashing(one)[0] / frequencies.amplitudes(24, 32)[3, 5]
    rows, columns = np.mgrid[:24, :32]
    angle = 2 * np.pi * (3 * rows / 24 + 5 * columns / 32)
    expected = 0.5 * (np.cos(angle) + np.sin(angle)) / np.sqrt(24 * 32)
    np.testing.assert_allclose(waves, expected[..., None] * frequencies.COLOURS[:, 0], atol=2e-6)
    assert np.isclose(np.mean(frequencies.amplitudes(24, 32) ** 2), 1)
    assert np.isclose(np.sum(frequencies.COLOURS**2), 3)


@pytest.mark.parametrize("height, width", [(24, 32), (32, 24)])
def test_a_constant_is_as_strong_as_the_longest_wave(height, width):
    found = frequencies.amplitudes(height, width)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    frequency[0, 0] = 1 / 32
    np.testing.assert_allclose(found * frequency, found[0, 0] / 32, rtol=1e-6)


@pytest.mark.parametrize("height, width", [(24, 32), (9, 8), (8, 9), (7, 7), (2, 3), (1, 2), (1, 1)])
def test_the_transform_is_hartleys_and_its_own_inverse_and_gradient(height, width):
    x, rows, columns = NOISE[0, :height, :width, 0], *np.mgrid[:height, :width]
    angles = np.multiply.outer(rows, rows) / height + np.multiply.outer(columns, columns) / width
    expected = np.einsum("ijkl,kl->ij", np.cos(2 * np.pi * angles) + np.sin(2 * np.pi * angles), x)
    found, gradient = jax.vjp(frequencies.hartley, jnp.asarray(x))
    np.testing.assert_allclose(found, expected / np.sqrt(height * width), atol=5e-6)
    np.testing.assert_allclose(frequencies.hartley(found), x, atol=2e-6)
    np.testing.assert_allclose(gradient(found)[0], x, atol=2e-6)


def test_contrast_differs_from_image_to_image():
    same = jnp.broadcast_to(jnp.asarray(NOISE[:1]), NOISE.shape)
    deviations = np.asarray(frequencies.images(same, MEAN, STD)).std(axis=(1, 2, 3))
    order = frequencies.contrasts(len(NOISE)).ravel().argsort()
    assert (np.diff(deviations[order]) > 0).all() and deviations.max() > 2 * deviations.min()


def test_the_first_images_have_all_contrasts():
    """For what looks at a part of a group: pictures, mixed precision."""
    found = np.log(frequencies.contrasts(256)).ravel()
    for count in (8, 12, 32, 128):
        part = np.sort(found[:count])
        assert np.diff(part).max() < 3 * np.ptp(found) / count
        assert part[0] - found.min() < np.ptp(found) / 5 and found.max() - part[-1] < np.ptp(found) / 5


def test_contrasts_of_groups_of_any_size():
    for count in (1, 2, 32):
        found = frequencies.contrasts(count).ravel()
        least, greatest = frequencies.CONTRASTS
        assert found.dtype == np.float32 and (found > least).all() and (found < greatest).all()
        assert np.isclose(np.exp(np.log(found).mean()), np.sqrt(least * greatest))


def test_images_are_made_one_by_one():
    images = frequencies.images(jnp.asarray(NOISE), MEAN, STD)
    others = np.concatenate([NOISE[:2] * 0, NOISE[2:3], NOISE[3:] * 0])
    np.testing.assert_allclose(images[2], frequencies.images(jnp.asarray(others), MEAN, STD)[2], atol=1e-6)
    gradient = jax.grad(lambda x: frequencies.images(x, MEAN, STD)[2].sum())(jnp.asarray(NOISE))
    assert np.flatnonzero(np.abs(gradient).max(axis=(1, 2, 3))).tolist() == [2]


def test_the_paper_moves_pixels_and_our_recipe_frequencies():
    assert psaq_jax.SynthesisConfig().parametrization == "pixels"
    assert psaq_jax.SynthesisConfig(recipe="default").parametrization == "frequencies"
    assert psaq_jax.SynthesisConfig(recipe="default", parametrization="pixels").parametrization == "pixels"
    with pytest.raises(psaq_jax.InputError, match="recipe 'paper', which moves pixels; take recipe 'default'"):
        psaq_jax.SynthesisConfig(parametrization="frequencies")
    with pytest.raises(psaq_jax.InputError, match="synthesis.parametrization is 'waves'"):
        psaq_jax.SynthesisConfig(recipe="default", parametrization="waves")
