"""Folding leaves the function as it was: step by step, over whole models of every family, and undone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

import psaq_jax
from psaq_jax.quantization import folding, gptq
from psaq_jax.quantization.channel_folding import Bits, fold
from psaq_jax.quantization.hard_copies import hard_copy
from psaq_jax.quantization.recipes import DefaultRecipe
from psaq_jax.quantization.segments import chain, parts_of
from psaq_jax.sites import observe, record
from tests.golden_files import GOLDEN, reference_vit
from tests.quantization.folded_models import folded_model

pytestmark = pytest.mark.usefixtures("quickly_compiled")

C = 32


@pytest.fixture(scope="module")
def model():
    return reference_vit(2)


def pixels(model, count=3):
    return np.random.default_rng(0).normal(size=(count, *model.image_shape)).astype(np.float32)


def factors(channels, seed):
    generator = np.random.default_rng(seed)
    return jnp.asarray(np.exp(generator.normal(size=channels)), jnp.float32), jnp.asarray(
        generator.normal(size=channels), jnp.float32
    )


@pytest.mark.parametrize("fold", ["norm", "values", "queries", "activation"])
def test_each_fold_is_an_identity(model, fold):
    c, qkv = model.module.width, "block_1/attention/qkv"
    factor, shift = factors(c, 0)
    params = {
        "norm": lambda: folding.fold_norm(model.params, "block_1/norm1", (qkv,), factor, shift),
        "values": lambda: folding.fold_values(model.params, qkv, "block_1/attention/projection", factor, shift),
        "queries": lambda: folding.fold_queries(model.params, qkv, factor, shift),
        "activation": lambda: folding.fold_activation(model.params, "block_1/mlp", factors(model.module.hidden, 1)[0]),
    }[fold]()
    before = model(pixels(model))
    flat = traverse_util.flatten_dict(model.params, sep="/")
    assert any((x != flat.get(path, 0)).any() for path, x in traverse_util.flatten_dict(params, sep="/").items())
    np.testing.assert_allclose(model.replace(params=params)(pixels(model)), before, atol=2e-5)


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_balance_follows_the_scale_of_a_channel(strength):
    generator = np.random.default_rng(0)
    low, high = -generator.uniform(size=6), generator.uniform(size=6)
    kernel, scale = generator.normal(size=(6, 4)), np.array([1, 10, 100, 1, 0.1, 1.0])
    balance = folding.balance(low, high, kernel, strength)
    scaled = folding.balance(low * scale, high * scale, kernel / scale[:, None], strength)
    np.testing.assert_allclose(scaled, balance * scale, rtol=1e-5)
    if strength == 1:
        np.testing.assert_allclose(np.maximum(-low, high) / balance, 1, rtol=1e-5)


def test_a_channel_that_no_weight_takes_does_not_widen_the_range():
    """However large it is: pruned models have such channels."""
    low, high = np.full(6, -1.0), np.full(6, 1.0)
    low[2], high[2], kernel = -1e4, 1e4, np.random.default_rng(0).normal(size=(6, 4))
    kernel[2] = 0
    for strength in folding.STRENGTHS:
        reach = np.asarray(high / folding.balance(low, high, kernel, strength))
        assert reach[2] <= np.delete(reach, 2).max() * 1.0001


@pytest.mark.parametrize(
    "name",
    ["checkpoints/hf_deit_distilled", "checkpoints/hf_dinov2_swiglu", "more/hf_swin_padded", "more/timm_swin_padded"],
)
def test_folded_models_give_the_same_logits(name):
    """Swin that pads its maps with zeros behind a norm is where a shift would not be an identity."""
    model = psaq_jax.load_model(GOLDEN / name)
    images = pixels(model)
    folded = folded_model(model, images, 8, DefaultRecipe())
    np.testing.assert_allclose(folded(images), model(images), atol=5e-5)


@pytest.mark.parametrize("activation_bits", [4, None])
@pytest.mark.parametrize(
    "name", ["checkpoints/hf_deit_distilled", "checkpoints/hf_dinov2_swiglu", "more/hf_swin_padded"]
)
def test_a_hard_copy_folds_into_the_originals_parameters(name, activation_bits):
    """Outputs of qkv differ by 100 times, of which the LayerNorm before it must see nothing."""
    model = psaq_jax.load_model(GOLDEN / name)
    found = (folded_model(m, pixels(m), activation_bits, DefaultRecipe()) for m in (model, hard_copy(model)))
    one, other = (traverse_util.flatten_dict(m.params, sep="/") for m in found)
    for path, value in one.items():
        if path.endswith("kernel"):
            np.testing.assert_allclose(other[path], value, atol=0.02 * np.abs(value).max(), err_msg=path)


def test_activations_that_differ_by_channel_get_nearer_ranges(model):
    params = model.params
    for block in range(model.module.depth):
        kernel = params[f"block_{block}"]["mlp"]["dense1"]["kernel"]
        params = folding.changed(params, {f"block_{block}/mlp/dense1/kernel": kernel.at[:, 3].multiply(30)})
    model, images = model.replace(params=params), pixels(model)
    folded = folded_model(model, images, 8, DefaultRecipe())
    np.testing.assert_allclose(folded(images), model(images), atol=5e-5)

    def reach(model):
        _, found = record(model.module, model.params, images, "block_1/mlp/activation_output")
        return np.abs(found["block_1/mlp/activation_output"]).max((0, 1))

    def spread(x):
        return x.max() / np.median(x)

    assert spread(reach(folded)) < 1.1 * np.sqrt(spread(reach(model)))


def test_a_head_of_8_bits_is_folded_for_8_bits(model):
    """Whatever the bits of the other layers and sites."""
    *_, link = chain(model.module, model.params, model.image_shape)
    params, x = link.parameters(model.params), np.random.default_rng(0).normal(size=(16, 5, model.module.width)) ** 3
    parts = parts_of(link.segment, params, x)
    few, many = (fold(link.segment, parts, params, x, Bits({"head": 8}, bits), DefaultRecipe()) for bits in (3, 8))
    jax.tree.map(np.testing.assert_array_equal, few, many)
    assert not np.array_equal(few["head"]["kernel"], params["head"]["kernel"])


@pytest.mark.parametrize("images, by_images", [(1, False), (15, False), (16, True)])
def test_a_head_that_few_images_reach_is_folded_by_its_norm(model, images, by_images):
    """One image is one value a channel: a range of nothing."""
    *_, link = chain(model.module, model.params, model.image_shape)
    params, generator = link.parameters(model.params), np.random.default_rng(0)
    seen = [generator.normal(size=(images, 5, model.module.width)).astype(np.float32) for _ in range(2)]
    parts = parts_of(link.segment, params, seen[0])
    bits = Bits({"head": 8}, 8)
    one, other = (fold(link.segment, parts, params, x, bits, DefaultRecipe())["head"]["kernel"] for x in seen)
    assert np.array_equal(one, other) != by_images
    assert not np.array_equal(one, params["head"]["kernel"])


def test_products_keep_their_precision_on_accelerators():
    """Where the default is less: TF32 on GPUs, bfloat16 on TPUs."""
    kernel, vector, square = jnp.ones((C, C)), jnp.ones(C), jnp.eye(C)
    norm, dense = {"scale": vector, "bias": vector}, {"kernel": kernel, "bias": vector}
    params = {"norm": norm, "dense": dense, "qkv": {"kernel": jnp.ones((C, 3 * C))}}
    for function, arguments in (
        (lambda params, x: folding.fold_norm(params, "norm", ("dense",), x, x), (params, vector)),
        (lambda params, x: folding.fold_values(params, "qkv", "dense", x, x), (params, vector)),
        (gptq.searched_scale, (kernel, vector, 4.0)),
        (gptq.gptq, (kernel, square, vector, 4.0, 0.1)),
        (gptq.coordinate_descent, (kernel, square, kernel, vector, 4.0, 0.1)),
    ):
        text = str(jax.make_jaxpr(function)(*arguments))
        assert text.count("dot_general[") == text.count("HIGHEST, Precision.HIGHEST") > 0


def test_hard_copy_of_a_gated_model_is_the_same_function():
    model = psaq_jax.load_model(GOLDEN / "checkpoints/hf_dinov2_swiglu")
    np.testing.assert_allclose(hard_copy(model)(pixels(model)), model(pixels(model)), atol=1e-4)


def test_hard_copy_is_the_same_function_with_outlier_channels(model):
    images = pixels(model)
    copy = hard_copy(model)
    np.testing.assert_allclose(copy(images), model(images), atol=1e-4)
    before, after = observe(model.module, model.params, images), observe(copy.module, copy.params, images)
    for site in (
        "block_1/norm1_output",
        "block_1/norm2_output",
        "block_1/attention/attention_output",
        "block_1/residual1",
    ):
        assert after[site][1] - after[site][0] > 5 * (before[site][1] - before[site][0]), site


def test_folding_brings_a_hard_copy_back(model):
    images, options = pixels(model), DefaultRecipe()
    folded, copy = folded_model(model, images, 8, options), folded_model(hard_copy(model), images, 8, options)
    wanted = ("block_1/norm1_output", "block_1/attention/value", "block_1/attention/key", "block_1/norm2_output")
    ours = observe(folded.module, folded.params, images)
    theirs = observe(copy.module, copy.params, images)
    for site in wanted:
        np.testing.assert_allclose(theirs[site], ours[site], rtol=1e-3, err_msg=site)


def test_the_searched_balance_spares_who_has_fewer_bits():
    generator = np.random.default_rng(0)
    reach = np.exp(2 * generator.normal(size=16)).astype(np.float32)
    kernel = generator.normal(size=(16, 8)).astype(np.float32)
    args = -reach, reach, reach**2 / 3, kernel
    few_activations = folding.searched_balance(*args, 8, 4)
    few_weights = folding.searched_balance(*args, 4, 8)

    def spread(x):
        return np.log(np.max(x) / np.min(x))

    assert spread(reach / few_activations) < spread(reach / few_weights)
    cost = functools.partial(folding.rounding_cost, low=-reach, high=reach, square=reach**2 / 3, kernel=kernel)
    for bits in ((8, 4), (4, 8), (4, 4)):
        found = cost(folding.searched_balance(*args, *bits), weight_bits=bits[0], activation_bits=bits[1])
        for strength in folding.STRENGTHS:
            factor = folding.balance(-reach, reach, kernel, strength)
            assert found <= 1.001 * cost(factor, weight_bits=bits[0], activation_bits=bits[1])


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("bits", [(4, 8), (8, 4), (5, 5)])
def test_rounding_cost_is_the_error_of_a_rounded_product(bits, times):
    """12 times that of weights and inputs on their grids, in float64."""
    generator, c = np.random.default_rng(0), 64
    reach, kernel = generator.uniform(0.5, 2, c), generator.normal(size=(times * c, 96))
    x, factor = generator.uniform(-reach, reach, (times, 3000, c)), generator.uniform(0.5, 1.5, c)
    cost = folding.rounding_cost(factor, -reach, reach, reach**2 / 3, kernel, *bits)
    x, scaled = np.concatenate(x / factor, axis=1), kernel * np.tile(factor, times)[:, None]
    steps = np.abs(scaled).max(0) / ((2 ** bits[0] - 1) / 2), 2 * (reach / factor).max() / (2 ** bits[1] - 1)
    weights, inputs = (np.rint(value / step) * step for value, step in zip((scaled, x), steps, strict=True))
    error = np.sum(np.square(inputs @ weights - x @ scaled), axis=1).mean()
    np.testing.assert_allclose(cost, 12 * error, rtol=0.05)  # one kernel's errors are a sample; seen: 0.025
