"""The shifted logarithmic grid of a histogram against every other candidate, by brute force; choices of grids."""

import jax.numpy as jnp
import numpy as np
import pytest

from psaq_jax.quantization import clipping, statistics
from psaq_jax.quantization.representation import LogQuantizer, UniformQuantizer

pytestmark = pytest.mark.usefixtures("quickly_compiled")

ONCE, WIDE = ((1.0, 1.0),), ((1.0, 1.0), (2.0, 0.5))
BINS = 512
SAMPLES = {
    "about zero": lambda generator: generator.standard_t(2, 2000),
    "hardly below zero": lambda generator: np.maximum(generator.standard_t(2, 2000), -0.02),
    "never below zero": lambda generator: np.abs(generator.standard_t(2, 2000)),
}


def grid(x, top, steps, bits, shift):
    with np.errstate(divide="ignore"):
        codes = np.clip(np.rint(-steps * np.log2(np.maximum((x + shift) / top, 1e-30))), 0, 2**bits - 1)
    return np.where(codes == 2**bits - 1, 0, top * 2 ** (-codes / steps)) - shift


@pytest.mark.parametrize("coverage", [ONCE, WIDE])
@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("sample", SAMPLES)
def test_a_shifted_grid_rounds_a_sample_as_well_as_any(sample, bits, coverage):
    x = SAMPLES[sample](np.random.default_rng(0)).astype(np.float32)
    low, high = min(x.min(), np.float32(0)), x.max()
    counts, edges = np.histogram(x, BINS, (low, high))
    centers = (edges[1:] + edges[:-1]) / 2  # what is rounded: the bins' middles, as the search does it
    histogram = jnp.asarray(counts, jnp.float32), jnp.asarray(centers, jnp.float32), low, high
    found, error = clipping.shifted_log(*histogram, jnp.float32(bits), coverage)
    shift = max(-low, 1e-3 * high)

    def error_of(top, steps):
        of = [
            w * np.sum(counts * np.square(grid(s * centers, top, steps, bits, shift) - s * centers))
            for s, w in coverage
        ]
        return sum(of) / counts.sum()

    tops = {}
    for steps in clipping.STEPS["searched"]:
        codes = np.clip(np.rint(steps * np.log2(clipping.FACTORS * high / shift + 1)), 0, 2**bits - 2)
        tops[steps] = shift * 2.0 ** (np.unique(codes) / steps)
    best = min(error_of(top, steps) for steps, several in tops.items() for top in several)
    # A bin's middle between two values of the grid may go either way in float32.
    np.testing.assert_allclose(error, best, rtol=1e-3)
    np.testing.assert_allclose(error_of(np.float64(found.scale), np.float64(found.steps)), best, rtol=1e-3)
    np.testing.assert_allclose(found.shift, shift, rtol=1e-6)
    np.testing.assert_allclose(found(np.zeros(1, np.float32)), 0, atol=1e-5 * shift)  # of differences of two shifts


@pytest.mark.parametrize("low, high", [(1.0, 3.0), (-3.0, -1.0), (-1.0, 2.0), (0.0, 0.0)])
def test_a_uniform_range_is_widened_to_hold_zero(low, high):
    quantizer = clipping.uniform(low, high, 4)
    expected = np.linspace(min(low, 0), max(high, 0), 16)
    assert np.asarray(quantizer(np.zeros(1, np.float32))) == 0
    step = (expected[-1] - expected[0]) / 15
    np.testing.assert_allclose(quantizer(np.float32([low, high])), [low, high], atol=0.51 * step)  # zero is on the grid
    assert float(quantizer.bits) == 4


@pytest.mark.parametrize(
    "choice, kind, steps",
    [("log2", LogQuantizer, {1}), ("log_sqrt2", LogQuantizer, {2}), ("uniform", UniformQuantizer, None),
     ("searched", LogQuantizer, set(clipping.STEPS["searched"]))],
)  # fmt: skip
def test_a_choice_of_softmax_grids_is_kept_to(choice, kind, steps):
    p = np.random.default_rng(0).dirichlet(np.full(32, 0.1), size=100)
    counts = np.histogram(-np.log2(np.maximum(p, 1e-9)), 2048, (0, clipping.OCTAVES))[0]
    quantizer = clipping.choose(*clipping.probability_quantizer(jnp.float32(counts), 4, 32, choice, ONCE))
    assert isinstance(quantizer, kind)
    assert steps is None or int(quantizer.steps) in steps


def test_a_channel_whose_range_lies_far_from_its_histogram_stays_inside():
    """A histogram of nothing: its mean, 0, lies outside, and would turn the range around."""
    low, high = np.float32([2, -3]), np.float32([3, -2])
    counts, centers = jnp.zeros((2, 16)), statistics.bin_centers(low, high, 16)
    found_low, found_high = clipping.channel_ranges(counts, centers, low, high, jnp.float32(4), ONCE)
    assert (np.asarray(found_low) <= np.asarray(found_high)).all()
    assert (np.abs(found_low - low) <= 1).all() and (np.abs(found_high - high) <= 1).all()
