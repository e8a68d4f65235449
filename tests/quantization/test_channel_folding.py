"""What decides on folding: ranges and bits of each site, several sites of one norm, attention, activations, heads."""

import dataclasses
import types

import jax.numpy as jnp
import numpy as np
import pytest

from psaq_jax.quantization import channel_folding, clipping, folding, statistics, streaming
from psaq_jax.quantization.channel_folding import HIDDEN, Bits, Folds, NormFold, Parts
from psaq_jax.quantization.recipes import DefaultRecipe

pytestmark = pytest.mark.usefixtures("quickly_compiled")

C = 6
HEADS = NormFold("norm", ("head_input", "distillation_head_input"), ("head", "distillation_head"))


def array(generator, *shape):
    return generator.normal(size=shape).astype(np.float32)


def moments(generator):
    """Of channels whose ranges lie to any side of zero."""
    ends = np.sort(3 * array(generator, 2, C), axis=0)
    mean = ends.mean(0)
    return streaming.Moments(ends[0], ends[1], mean, np.square(mean) + array(generator, C) ** 2)


def largest(kernel):
    return np.abs(kernel).max(1)


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("biases", [("qkv", "projection"), ("qkv",), ("projection",), ()])
def test_attentions_channels_are_divided_by_what_its_formulas_say(strength, biases):
    """Values are shifted where both layers have a bias, keys where qkv has one."""
    generator = np.random.default_rng(0)
    qkv, projection = array(generator, C, 3 * C), array(generator, C, C)
    params = {"attention": {"qkv": {"kernel": qkv}, "projection": {"kernel": projection}}}
    for name, width in (("qkv", 3 * C), ("projection", C)):
        if name in biases:
            params["attention"][name]["bias"] = np.zeros(width, np.float32)
    flat = {f"attention/{a}/{b}": x for a, leaves in params["attention"].items() for b, x in leaves.items()}
    seen = {f"attention/{name}": moments(generator) for name in ("query", "key", "value", "attention_output")}
    ends = {name: (m.low, m.high) for name, m in seen.items()}
    found = channel_folding.fold_attention(params, flat, ends, seen, {"attention/projection": (4, 8)}, strength)
    (low, high), (output_low, output_high) = ends["attention/value"], ends["attention/attention_output"]
    value_shift = (low + high) / 2 * (len(biases) == 2)
    own = np.maximum(np.abs(low - value_shift), np.abs(high - value_shift))
    output = np.maximum(np.abs(output_low - value_shift), np.abs(output_high - value_shift))
    value = np.sqrt(own * output) ** strength / largest(projection) ** (1 - strength)
    (low, high), query = ends["attention/key"], np.abs(ends["attention/query"]).max(0)
    key_shift = (low + high) / 2 * ("qkv" in biases)
    factor = np.sqrt(np.maximum(np.abs(low - key_shift), np.abs(high - key_shift)) / query)
    scale = np.concatenate([factor, 1 / factor, 1 / value])
    found = found["attention"]
    np.testing.assert_allclose(found["qkv"]["kernel"], qkv * scale, rtol=1e-5)
    np.testing.assert_allclose(found["projection"]["kernel"], projection * value[:, None], rtol=1e-5)
    if "qkv" in biases:
        expected = -np.concatenate([np.zeros(C), key_shift, value_shift]) * scale
        np.testing.assert_allclose(found["qkv"]["bias"], expected, rtol=1e-5, atol=1e-7)
    if "projection" in biases:
        np.testing.assert_allclose(found["projection"]["bias"], value_shift @ projection, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("may_shift", [True, False])
def test_two_heads_share_the_range_that_holds_both(may_shift):
    generator = np.random.default_rng(0)
    flat = {f"{layer}/kernel": array(generator, C, 4) for layer in HEADS.layers}
    flat |= {f"{layer}/bias": np.zeros(4, np.float32) for layer in HEADS.layers}
    flat |= {"norm/scale": np.ones(C, np.float32), "norm/bias": np.zeros(C, np.float32)}
    seen = {site: moments(generator) for site in HEADS.sites}
    ends = {site: (m.low, m.high) for site, m in seen.items()}
    folds = Folds(((HEADS, may_shift),), gated=False, activation=False, attention=False)
    found = channel_folding._folded(flat, ends, seen, dict.fromkeys(HEADS.layers, (8, 8)), folds, 1.0)
    low = np.minimum(*(m.low for m in seen.values()))
    high = np.maximum(*(m.high for m in seen.values()))
    shift = (low + high) / 2 * may_shift
    reach = np.maximum(np.abs(low - shift), np.abs(high - shift))
    np.testing.assert_allclose(found["norm/scale"], 1 / reach, rtol=1e-5)
    np.testing.assert_allclose(found["norm/bias"], -shift / reach, rtol=1e-5, atol=1e-7)
    for layer in HEADS.layers:
        np.testing.assert_allclose(found[f"{layer}/kernel"], flat[f"{layer}/kernel"] * reach[:, None], rtol=1e-5)


def test_a_norm_tells_three_deviations_of_its_channels():
    scale, bias = np.float32([1, -2, 0]), np.float32([0, 1, 3])
    folds = Folds(((channel_folding.NORM1, True), (HEADS, True)), gated=False, activation=False, attention=False)
    found = channel_folding.heads_by_norm({"norm/scale": scale, "norm/bias": bias}, folds)
    assert list(found) == list(HEADS.sites)
    for told in found.values():
        np.testing.assert_array_equal(told.low, [-3, -5, 3])
        np.testing.assert_array_equal(told.high, [3, 7, 3])
        np.testing.assert_array_equal(told.mean, bias)
        np.testing.assert_array_equal(told.square, [1, 5, 9])  # squared mean and variance


def test_activations_are_divided_by_the_root_of_their_reach():
    """No channel by less than the root of a fiftieth of the largest."""
    low, high, zeros = np.float32([0, -8, 0, -0.02, 0]), np.float32([9, 4, 1, 0.01, 0]), np.zeros(5, np.float32)
    found = channel_folding.activation_factor(streaming.Moments(low, high, zeros, zeros))
    np.testing.assert_allclose(found, np.sqrt([9, 8, 1, 0.18, 0.18]), rtol=1e-5)
    assert np.isfinite(1 / channel_folding.activation_factor(streaming.Moments(*[zeros] * 4))).all()


@pytest.mark.parametrize(
    "bits, gated, sites, expected",
    [(8, False, (HIDDEN,), True), (7, False, (HIDDEN,), False), (4, False, (HIDDEN,), False),
     (None, False, (HIDDEN,), False), (8, True, (HIDDEN,), False), (8, False, (), False)],
)  # fmt: skip
def test_activations_are_folded_from_8_bits_on(bits, gated, sites, expected):
    flat = {"mlp/dense1/kernel": np.zeros((C, 8 * (1 + gated))), "mlp/dense2/kernel": np.zeros((8, C))}
    parts = Parts(dict.fromkeys(sites, (1, 8)), {})
    assert channel_folding.folds_activation(parts, flat, Bits({}, bits)) == expected


@pytest.fixture
def seen(monkeypatch):
    """({site: its moments}, the histogram and its middles) of heavy tails, which every segment has."""
    x = np.random.default_rng(0).standard_t(3, size=(500, C)).astype(np.float32)
    low, high = x.min(0), x.max(0)
    counts = statistics.histogram(x, jnp.ones((len(x), 1)), low, high, streaming.CHANNEL_BINS)
    of_both = dict.fromkeys(("norm1_output", "head_input"), counts)
    monkeypatch.setattr(streaming, "channel_histograms", lambda *_: of_both)
    of_one = streaming.Moments(low, high, x.mean(0), np.square(x).mean(0))
    ranges = types.SimpleNamespace(counts=counts, centers=statistics.bin_centers(low, high, streaming.CHANNEL_BINS))
    return {"norm1_output": of_one, "head_input": of_one}, ranges


@pytest.mark.parametrize(
    "bits, changes, sites_bits",
    [(4, {}, (4, 8)), (4, {"first_last_8bit": False}, (4, 4)), (8, {}, (8, 8)), (None, {}, (16, 16)),
     (4, {"coverage": ((1.0, 1.0), (2.0, 0.5))}, (4, 8))],
)  # fmt: skip
def test_every_sites_range_is_that_of_its_bits_and_the_recipes_coverage(seen, bits, changes, sites_bits):
    (sites, ranges), options = seen, dataclasses.replace(DefaultRecipe(), **changes)
    found = channel_folding.best_channel_ranges(None, {}, None, sites, Bits({}, bits), options)
    for (name, m), own in zip(sites.items(), sites_bits, strict=True):
        histogram = ranges.counts, ranges.centers, m.low, m.high
        expected = clipping.channel_ranges(*histogram, np.float32(own), options.coverage)
        np.testing.assert_array_equal(found[name], expected)


def test_without_a_search_ranges_are_what_was_seen(seen):
    sites, _ = seen
    options = DefaultRecipe(search_ranges=False)
    found = channel_folding.best_channel_ranges(None, {}, None, sites, Bits({}, 4), options)
    for name, m in sites.items():
        np.testing.assert_array_equal(found[name], (m.low, m.high))


@pytest.mark.parametrize("strength", folding.STRENGTHS)
def test_a_channel_that_is_never_excited_stays_as_it_is(strength):
    """Dividing it by what its weights ask for would blow up what only other images excite."""
    generator = np.random.default_rng(0)
    high, kernel = generator.uniform(1, 2, C).astype(np.float32), array(generator, C, 4)
    high[2] = 0
    found = folding.balance(-high, high, kernel, strength)
    expected = np.where(high == 0, 1, high**strength / largest(kernel) ** (1 - strength))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
