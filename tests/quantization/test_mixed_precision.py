"""Mixed precision: the best bits under a budget, against every other choice; costs measured without labels."""

import dataclasses
import itertools

import numpy as np
import pytest

from psaq_jax import InputError, calibrate, pipeline, quantize
from psaq_jax.config import JobConfig, QuantizationConfig
from psaq_jax.quantization import mixed_precision
from psaq_jax.quantization.hard_copies import hard_copy
from psaq_jax.quantization.mixed_precision import BITS, allocate, choose_bits, free_layers, kernel_costs
from psaq_jax.quantization.preparation import prepare
from psaq_jax.quantization.quantizers import fake_quantize_weights
from psaq_jax.quantization.recipes import DefaultRecipe
from psaq_jax.quantization.transform import kernel_sizes
from tests import quick_recipe
from tests.golden_files import golden, nhwc, reference_vit
from tests.quantization.artefacts import random_model
from tests.quick_recipe import QUICK, ROUNDING
from tests.random_models import VIT, random_pixels

pytestmark = pytest.mark.usefixtures("quickly_compiled")

IMAGES = nhwc(golden("paper/vit/reference.npz")["calibration_images"])[:8]


def random_costs(seed, layers):
    """Falling costs, as quantization has them, with some noise."""
    generator = np.random.default_rng(seed)
    return {
        f"layer_{i}": generator.uniform(0.1, 10) * 4.0 ** -np.arange(2, 9) * generator.uniform(0.7, 1.3, 7)
        for i in range(layers)
    }


def average(bits, sizes):
    return sum(bits[name] * sizes[name] for name in bits) / sum(sizes.values())


@pytest.mark.parametrize("budget", [2, 2.7, 3.5, 4, 5.25, 8])
@pytest.mark.parametrize("seed", range(3))
def test_nothing_within_the_budget_costs_less(seed, budget):
    costs = random_costs(seed, 5)
    sizes = {name: int(size) for name, size in zip(costs, np.random.default_rng(seed).integers(1, 40, 5), strict=True)}
    found = allocate(costs, sizes, budget)
    assert list(found) == list(costs) and average(found, sizes) <= budget
    others = (dict(zip(costs, bits, strict=True)) for bits in itertools.product(BITS, repeat=5))
    best = min(sum(costs[n][b - 2] for n, b in o.items()) for o in others if average(o, sizes) <= budget)
    np.testing.assert_allclose(sum(costs[n][b - 2] for n, b in found.items()), best, rtol=1e-12)


def test_sizes_without_a_common_divisor_are_rounded_up(monkeypatch):
    """Then the budget holds, and is used up but for a part of the knapsack's unit."""
    monkeypatch.setattr(mixed_precision, "STATES", 200)
    costs, sizes = random_costs(0, 6), dict(zip(random_costs(0, 6), (1009, 2003, 3001, 4001, 5003, 7001), strict=True))
    found = allocate(costs, sizes, 4.0)
    assert 3.5 < average(found, sizes) <= 4


@pytest.mark.parametrize("budget", [2, 3, 4, 8])
def test_uniform_bits_are_never_cheaper(monkeypatch, budget):
    """Rounded up sizes may leave them out, though they meet the budget exactly."""
    monkeypatch.setattr(mixed_precision, "STATES", 200)
    sizes = dict(zip(random_costs(0, 6), (1009, 2003, 3001, 4001, 5003, 7001), strict=True))
    costs = {name: size * 4.0 ** -np.arange(2, 9) for name, size in sizes.items()}
    found = allocate(costs, sizes, budget)
    assert average(found, sizes) <= budget
    assert sum(costs[n][b - 2] for n, b in found.items()) <= sum(cost[budget - 2] for cost in costs.values())


def test_where_nothing_costs_anything_all_get_the_same():
    """A model of one logit: its probability is always 1."""
    assert set(allocate({name: np.zeros(7) for name in "abc"}, dict.fromkeys("abc", 10), 6.5).values()) == {6}


def test_costs_are_divergences_of_the_probabilities():
    model, pixels = random_model(), random_pixels(count=40)
    costs = kernel_costs(model, pixels, ["head"])["head"]
    p = log_softmax(model(pixels))
    for k, bits in enumerate(BITS):
        kernel = fake_quantize_weights(model.params["head"]["kernel"], bits)
        rounded = model.replace(params=model.params | {"head": model.params["head"] | {"kernel": kernel}})
        q = log_softmax(rounded(pixels))
        # At 8 bits terms of 1e-3 cancel to 1e-5, made of float32 logits.
        np.testing.assert_allclose(costs[k], np.mean(np.sum(np.exp(p) * (p - q), axis=1)), rtol=1e-2, atol=1e-8)
    assert costs[0] > 10 * costs[-1] > 0


def test_the_first_images_alone_are_measured(monkeypatch):
    monkeypatch.setattr(mixed_precision, "IMAGES", 3)
    model, pixels = random_model(), random_pixels(count=7)
    found, first = (kernel_costs(model, images, ["head"])["head"] for images in (pixels, pixels[:3]))
    np.testing.assert_array_equal(found, first)


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)


def test_one_forward_pass_is_compiled_for_all(compilations):
    model, pixels = random_model(), random_pixels(count=8)
    kernel_costs(model, pixels, ["head"])
    with compilations() as count:
        kernel_costs(model, pixels, ["head"])
    assert count() == 0


def test_recipe_default_keeps_first_and_last_apart():
    model, pixels = random_model(), random_pixels(count=8)
    sizes, seen = kernel_sizes(model.params), []
    free = free_layers(model, DefaultRecipe())
    costs = kernel_costs(model, pixels, free, progress=lambda done, total: seen.append((done, total)))
    bits = choose_bits(model, costs, 3, DefaultRecipe())
    assert list(bits) == list(sizes) and bits["patch_embedding"] == bits["head"] == 8
    inner = {layer: b for layer, b in bits.items() if layer.startswith("block")}
    assert average(inner, {layer: sizes[layer] for layer in inner}) <= 3
    assert seen == [(i + 1, 4) for i in range(4)]
    options = DefaultRecipe(first_last_8bit=False)
    assert free_layers(model, options) == free_layers(model) == list(sizes)
    ends = choose_bits(model, kernel_costs(model, pixels, list(sizes)), 3, options)
    assert average(ends, sizes) <= 3


def test_a_job_measures_every_kernel_once_a_recipe(monkeypatch):
    """For all budgets: with "default" the inner ones, as it rounds them, with "paper" the model's own."""
    model, pixels, measured = random_model(), random_pixels(count=8), []

    def spied(model, pixels, layers, prepared, progress):
        measured.append((prepared is None, list(layers)))
        return kernel_costs(model, pixels, layers, prepared, progress)

    monkeypatch.setattr(pipeline, "kernel_costs", spied)
    quantization = QuantizationConfig(bits=("auto:3a8", "auto:4a8"), recipe=f"{quick_recipe.NAME},paper")
    config = JobConfig(model="m", calibration=("noise",), quantization=quantization)
    found = [dict(q.kernel_bits) for _, q in pipeline.quantized_models(config, model, {"noise": pixels})]
    inner, layers = free_layers(model, DefaultRecipe()), list(kernel_sizes(model.params))
    assert measured == [(False, inner), (True, layers)]
    costs = kernel_costs(model, pixels, layers)
    assert found[2:] == [
        {f"{layer}/kernel": b for layer, b in choose_bits(model, costs, budget).items()} for budget in (3, 4)
    ]


def test_a_function_preserving_copy_has_the_costs_of_its_original():
    """Of the kernels that recipe "default" rounds, with outlier channels folded away; the copy's own cost far more."""
    model, pixels, options = reference_vit(2), IMAGES, DefaultRecipe()
    layers, copy = free_layers(model, options), hard_copy(model)
    np.testing.assert_allclose(prepare(model, pixels, options).folded(pixels), model(pixels), atol=1e-4)
    costs = [kernel_costs(m, pixels, layers, prepare(m, pixels, options)) for m in (model, copy)]
    raw = [kernel_costs(m, pixels, layers) for m in (model, copy)]

    def most_apart(of, others):
        return max(np.abs(np.log2(others[layer][:4] / of[layer][:4])).max() for layer in layers)

    assert most_apart(*costs) < 1 < 3 < most_apart(*raw)


@pytest.mark.parametrize("recipe", ["paper", "default"])
def test_every_kernel_gets_its_bits(recipe):
    model, pixels = random_model(), random_pixels(count=8)
    bits = dict(zip(kernel_sizes(model.params), (2, 3, 4, 5, 6, 7), strict=True))
    images, options = (None, None) if recipe == "paper" else (pixels, dataclasses.replace(QUICK, **ROUNDING))
    q = quantize(model, calibrate(model, pixels, recipe), bits, 8, recipe, images, options)
    assert dict(q.kernel_bits) == {f"{layer}/kernel": b for layer, b in bits.items()}
    layers = {"patch_embedding": q.params["patch_embedding"], "head": q.params["head"]}
    for layer, b in (("patch_embedding", bits["patch_embedding"]), ("head", bits["head"])):
        codes = np.asarray(layers[layer]["kernel"].codes)
        assert codes.min() >= -(2 ** (b - 1)) and 2 ** (b - 2) < np.abs(codes).max() <= 2 ** (b - 1)
    assert np.isfinite(q(pixels)).all()


@pytest.mark.parametrize("recipe", ["paper", "default"])
def test_activations_in_floating_point(recipe):
    """No site, weights as with quantized activations (paper), and closer to the float model than with 4 bits."""
    model, pixels = random_model(), random_pixels(count=8)
    ranges = calibrate(model, pixels, recipe)
    images, options = (None, None) if recipe == "paper" else (pixels, dataclasses.replace(QUICK, **ROUNDING))
    floats = quantize(model, {}, 6, None, recipe, images, options)
    coarse = quantize(model, ranges, 6, 4, recipe, images, options)
    assert floats.sites == {} and floats.activation_bits is None
    errors = [np.abs(q(pixels) - model(pixels)).mean() for q in (floats, coarse)]
    assert errors[0] < 0.7 * errors[1]


def test_refusals():
    model, pixels = random_model(), random_pixels()
    with pytest.raises(InputError, match="budget of mixed precision is 1.5"):
        choose_bits(model, {}, 1.5)
    with pytest.raises(InputError, match="budget of mixed precision is '4'"):
        choose_bits(model, {}, "4")
    with pytest.raises(InputError, match="costs: layer 'block_0/attention/qkv' is missing or unknown"):
        layers = [x for x in free_layers(model, DefaultRecipe()) if x != "block_0/attention/qkv"]
        choose_bits(model, {layer: np.ones(7) for layer in layers}, 4, DefaultRecipe())
    with pytest.raises(InputError, match="has one class, whose probability is always 1"):
        kernel_costs(random_model(VIT.clone(classes=1)), pixels, [])
    with pytest.raises(InputError, match="found layer 'haed', expected some of block_0"):
        kernel_costs(model, pixels, ["haed"])
    with pytest.raises(InputError, match="layer 'head' is missing"):
        bits = {layer: 4 for layer in kernel_sizes(model.params) if layer != "head"}
        quantize(model, calibrate(model, pixels), bits, 8)
    with pytest.raises(InputError, match="weight_bits of head is 9"):
        quantize(model, calibrate(model, pixels), {**bits, "head": 9}, 8)
