"""Ranges and grids of least squared error, and the grid of powers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from psaq_jax.quantization import clipping, statistics
from psaq_jax.quantization.representation import LogQuantizer, UniformQuantizer

pytestmark = pytest.mark.usefixtures("quickly_compiled")

ONCE = ((1.0, 1.0),)
STRETCHED = ((1.0, 1.0), (1.5, 0.1))


def histogram(x, bins=2048):
    low, high = jnp.minimum(x.min(0), 0), jnp.maximum(x.max(0), 0)
    counts = statistics.histogram(x, jnp.ones((len(x), 1)), low, high, bins)
    return counts, statistics.bin_centers(low, high, bins), low, high


@pytest.fixture(scope="module")
def heavy_tailed():
    x = np.random.default_rng(0).standard_t(3, size=(20000, 1)).astype(np.float32)
    return jnp.asarray(x)


def test_histogram_counts_with_weights():
    counts = statistics.histogram(
        jnp.array([[0.0, 5.0], [1.0, 9.0], [0.4, 5.1]]), jnp.array([[1.0], [2.0], [0.0]]),
        jnp.array([0.0, 5.0]), jnp.array([1.0, 9.0]), 2,
    )  # fmt: skip
    np.testing.assert_array_equal(counts, [[1, 2], [1, 2]])


def test_few_bits_clip_and_coverage_widens(heavy_tailed):
    counts, centers, low, high = histogram(heavy_tailed)
    found = {}
    for bits in (4, 8):
        for name, coverage in (("once", ONCE), ("stretched", STRETCHED)):
            least, greatest, _ = clipping.tensor_range(
                counts[0], centers[0], low[0], high[0], jnp.float32(bits), coverage
            )
            assert least <= 0 <= greatest
            found[name, bits] = float(greatest - least)
    seen = float(high[0] - low[0])
    assert found["once", 4] < 0.6 * seen
    assert found["once", 4] < found["once", 8] <= found["stretched", 8]
    assert found["once", 4] <= found["stretched", 4]


def test_the_range_found_is_the_best_of_the_grid(heavy_tailed):
    counts, centers, low, high = histogram(heavy_tailed)
    least, greatest, _ = clipping.tensor_range(counts[0], centers[0], low[0], high[0], jnp.float32(4), ONCE)

    def error(least, greatest):
        return float(jnp.mean(jnp.square(clipping.uniform(least, greatest, 4)(heavy_tailed) - heavy_tailed)))

    others = [error(low[0] * f, high[0] * g) for f in (0.2, 0.5, 1.0) for g in (0.2, 0.5, 1.0)]
    assert error(least, greatest) <= min(others) * 1.01  # the histogram's bins stand for their contents


def test_channel_ranges_follow_each_channel(heavy_tailed):
    x = jnp.concatenate([heavy_tailed, 100 * heavy_tailed + 500], axis=1)
    low, high = x.min(0), x.max(0)
    counts = statistics.histogram(x, jnp.ones((len(x), 1)), low, high, 256)
    centers = statistics.bin_centers(low, high, 256)
    least, greatest = clipping.channel_ranges(counts, centers, low, high, jnp.float32(4), ONCE)
    np.testing.assert_allclose((least[1] - 500) / 100, least[0], rtol=1e-3)
    np.testing.assert_allclose((greatest[1] - 500) / 100, greatest[0], rtol=1e-3)


@pytest.mark.parametrize("steps", [1, 2, 6])
def test_log_quantizer_gives_powers_and_zero(steps):
    quantizer = LogQuantizer(jnp.float32(1), jnp.float32(steps), jnp.float32(4))
    x = np.concatenate([[0.0, 1e-40, 1e-9], 2.0 ** (-np.arange(15) / steps)]).astype(np.float32)
    np.testing.assert_allclose(quantizer(x), np.concatenate([[0, 0, 0], x[3:]]), rtol=1e-5)
    exponents = -np.log2(np.asarray(quantizer(np.linspace(0.6, 1, 50, dtype=np.float32)))) * steps
    np.testing.assert_allclose(exponents, np.rint(exponents), atol=1e-4)


def test_softmax_grid_is_chosen_by_error():
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(200, 50)) * 3
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    counts = jnp.asarray(np.histogram(-np.log2(p), 2048, (0, clipping.OCTAVES))[0], jnp.float32)
    errors = {}
    for choice in ("searched", "log_sqrt2", "log2", "uniform"):
        quantizer = clipping.choose(*clipping.probability_quantizer(counts, 4, 64, choice, ONCE))
        assert isinstance(quantizer, UniformQuantizer if choice == "uniform" else LogQuantizer) or choice == "searched"
        errors[choice] = np.mean((quantizer(p.astype(np.float32)) - p) ** 2)
    assert errors["searched"] <= 1.02 * min(errors.values())


@pytest.mark.parametrize("choice", ["searched", "uniform"])
def test_softmax_grid_of_many_tokens_that_attend_to_all_alike(choice):
    """As DINOv2's 1,369 patches at 518 px: no probability is near 1, and no code should be."""
    generator = np.random.default_rng(0)
    p = np.exp(generator.normal(size=(20, 1370)) / 2)
    p = p / p.sum(1, keepdims=True)
    counts = jnp.asarray(np.histogram(-np.log2(p), 2048, (0, clipping.OCTAVES))[0], jnp.float32)
    quantizer = clipping.choose(*clipping.probability_quantizer(counts, 4, 1370, choice, ONCE))
    error = np.sqrt(np.mean((quantizer(p.astype(np.float32)) - p) ** 2) / np.mean(p**2))
    assert error < 0.09  # 0.11 of a logarithmic grid from 2^-5.75 on


def test_gelu_outputs_with_a_heavy_tail_get_a_shifted_logarithmic_grid():
    x = np.random.default_rng(0).standard_t(2, size=20000).astype(np.float32)
    x = np.asarray(jax.nn.gelu(x, approximate=False))
    low, high = jnp.float32(x.min()), jnp.float32(x.max())
    counts = jnp.asarray(np.histogram(x, 2048, (x.min(), x.max()))[0], jnp.float32)
    histogram = counts, statistics.bin_centers(low[None], high[None], 2048)[0], low, high, jnp.float32(4), ONCE
    *_, error = clipping.tensor_range(*histogram)
    grid, log_error = clipping.shifted_log(*histogram)
    assert log_error < 0.5 * error
    np.testing.assert_allclose(np.mean((grid(x) - x) ** 2), log_error, rtol=0.3)
    np.testing.assert_allclose(grid(np.zeros(1, np.float32)), 0, atol=1e-6)


WIDE = ((1.0, 1.0), (2.0, 0.5))  # a stretch that moves what is best by several of the candidates


def rounded_error(x, lows, highs, bits):
    """[f, g]: mean squared error of clipping to each [low, high] and rounding to 2^bits values from end to end."""
    lows, highs = lows[:, None, None], highs[None, :, None]
    step = (highs - lows) / (2**bits - 1)
    return np.mean(np.square(lows + step * np.rint((np.clip(x, lows, highs) - lows) / step) - x), -1)


@pytest.mark.parametrize("coverage", [ONCE, WIDE])
@pytest.mark.parametrize("bits", [3, 4, 6])
def test_channel_ranges_round_a_sample_as_well_as_any(heavy_tailed, bits, coverage):
    x = np.asarray(heavy_tailed)[:2000] * [1, 3] + [0, 50]
    low, high = x.min(0), x.max(0)
    counts = statistics.histogram(jnp.asarray(x, jnp.float32), jnp.ones((len(x), 1)), low, high, 256)
    centers = statistics.bin_centers(low, high, 256)
    found = clipping.channel_ranges(counts, centers, low, high, jnp.float32(bits), coverage)
    for channel, *ends in zip(x.T, *found, strict=True):
        middle = channel.mean()

        def error(lows, highs, channel=channel, middle=middle):
            stretched = [(weight, middle + stretch * (channel - middle)) for stretch, weight in coverage]
            return sum(weight * rounded_error(y, lows, highs, bits) for weight, y in stretched)

        candidates = (middle + (end - middle) * clipping.FACTORS for end in (channel.min(), channel.max()))
        # step²/12 and a histogram of 256 bins stand for the sample: a neighbour may win, seen 1.028 times the best.
        assert error(*(np.array([end]) for end in ends)).item() < 1.04 * error(*candidates).min()


@pytest.mark.parametrize("coverage", [ONCE, WIDE])
@pytest.mark.parametrize("bits", [3, 4, 6])
def test_tensor_range_rounds_a_sample_as_well_as_any(heavy_tailed, bits, coverage):
    x = np.asarray(heavy_tailed)[:2000]
    counts, centers, low, high = histogram(jnp.asarray(x))
    *ends, found = clipping.tensor_range(counts[0], centers[0], low[0], high[0], jnp.float32(bits), coverage)

    def error(least, greatest):
        scale = (greatest - least) / (2**bits - 1)
        zero, total = -np.rint(least / scale), 0
        for stretch, weight in coverage:
            codes = np.clip(np.rint(stretch * x / scale) + zero, 0, 2**bits - 1)
            total += weight * np.mean(np.square((codes - zero) * scale - stretch * x))
        return total

    best = min(error(low[0] * f, high[0] * g) for f in clipping.FACTORS for g in clipping.FACTORS)
    assert error(*ends) < 1.01 * best  # the histogram's bins stand for their contents
    np.testing.assert_allclose(found, error(*ends), rtol=0.01)


def log_grid(x, top, steps, bits):
    codes = np.clip(np.rint(-steps * np.log2(x / top)), 0, 2**bits - 1)
    return np.where(codes == 2**bits - 1, 0, top * 2 ** (-codes / steps))


def even_grid(x, top, bits):
    scale = top / (2**bits - 1)
    return np.clip(np.rint(x / scale), 0, 2**bits - 1) * scale


@pytest.mark.parametrize("coverage", [ONCE, WIDE])
@pytest.mark.parametrize("sharpness", [1, 4])
@pytest.mark.parametrize("bits", [2, 4])
def test_softmax_grids_round_a_sample_as_well_as_any(bits, sharpness, coverage):
    """Of few tokens, whose probabilities may be near 1: stretched they end there, where the grids do."""
    p = np.exp(sharpness * np.random.default_rng(0).normal(size=(500, 4)))
    p = p / p.sum(1, keepdims=True)
    counts = jnp.asarray(np.histogram(-np.log2(p), 2048, (0, clipping.OCTAVES))[0], jnp.float32)
    logarithmic, log, even = clipping.probability_quantizer(counts, bits, 4, "searched", coverage)

    def error(grid, *values):
        stretched = ((weight, np.minimum(stretch * p, 1)) for stretch, weight in coverage)
        return sum(weight * np.mean(np.square(grid(x, *values, bits) - x)) for weight, x in stretched)

    tops = 2.0 ** -np.arange(0, 6, 0.25)
    error_log = error(log_grid, np.float64(log.scale), np.float64(log.steps))
    error_even = error(even_grid, np.float64(even.scale) * (2**bits - 1))
    # A bin of the histogram is a hundredth wide, and stands for its middle.
    assert error_log < 1.02 * min(error(log_grid, top, n) for top in tops for n in clipping.STEPS["searched"])
    assert error_even < 1.02 * min(error(even_grid, top) for top in tops)
    assert bool(logarithmic) == (error_log < error_even)
