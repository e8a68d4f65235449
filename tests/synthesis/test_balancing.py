"""Balanced values and projections: the same function, and the same images where only powers of two were in between."""

import dataclasses

import numpy as np
import pytest

import psaq_jax
from psaq_jax.models.model import Model
from psaq_jax.quantization.folding import changed
from psaq_jax.quantization.hard_copies import hard_copy
from psaq_jax.synthesis.balancing import _factor, balanced
from psaq_jax.synthesis.config import SynthesisConfig
from tests.golden_files import GOLDEN, reference_vit
from tests.scaled_copies import blocks, scaled

SHORT = SynthesisConfig(recipe="default", num_images=4, group_size=4, iterations=3)
CHECKPOINTS = ("paper/vit", "paper/swin", "checkpoints/hf_deit_distilled", "checkpoints/hf_dinov2")


def unevenness(model: Model) -> float:
    """The largest ratio of what makes a value to what takes it, against its layer's usual one."""
    worst = 1.0
    for _, block in blocks(model):
        taken = block["attention/projection/kernel"]
        made = block["norm1/scale"][:, None] * block["attention/qkv/kernel"][:, -len(taken) :]
        ratio = np.linalg.norm(made, axis=0) / np.linalg.norm(taken, axis=1)
        ratio /= np.median(ratio)
        worst = max(worst, ratio.max(), 1 / ratio.min())
    return worst


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_balances_to_the_bit(name):
    model = psaq_jax.load_model(GOLDEN / name)
    copy = hard_copy(model)
    pixels = np.random.default_rng(0).normal(size=(2, *model.image_shape)).astype(np.float32)
    assert unevenness(copy) > 50
    assert unevenness(balanced(copy)) < 2.01
    np.testing.assert_array_equal(balanced(copy)(pixels), copy(pixels))


def test_leaves_a_trained_model_as_it_is():
    model = psaq_jax.load_model("bundled:fashion_mnist_vit")
    assert balanced(model) is model


def test_leaves_channels_that_nothing_makes_or_takes():
    model = psaq_jax.load_model(GOLDEN / "paper" / "vit")
    name, block = next(blocks(model))
    qkv, projection = block["attention/qkv/kernel"].copy(), block["attention/projection/kernel"].copy()
    qkv[:, -1], projection[:3] = 0, 0
    names = f"{name}/attention/qkv/kernel", f"{name}/attention/projection/kernel"
    dead = model.replace(params=changed(model.params, dict(zip(names, (qkv, projection), strict=True))))
    pixels = np.zeros((1, *model.image_shape), np.float32)
    np.testing.assert_array_equal(balanced(scaled(dead))(pixels), dead(pixels))


@pytest.mark.parametrize("usual", [0.0, 0.25, 0.5, 0.75])
def test_like_channels_have_one_factor_wherever_they_lie(usual):
    """Also where half of them lie on either side of what is between two powers of two; and one far off moves none."""
    generator, channels = np.random.default_rng(0), 32
    powers = usual + generator.uniform(-0.3, 0.3, channels)
    powers[-1] += 40
    scale = np.exp2(generator.uniform(-3, 3, channels))
    qkv = np.concatenate([np.ones((channels, 2 * channels)), np.diag(np.exp2(powers) / scale)], axis=1)
    factor = _factor(scale, qkv, np.diag(np.exp2(-powers)))
    np.testing.assert_array_equal(factor, [1] * (channels - 1) + [2**40])


@pytest.mark.parametrize("power", [66, -66, 110])
def test_balances_what_float32_cannot_square(power):
    model = psaq_jax.load_model(GOLDEN / "paper" / "vit")
    pixels = np.random.default_rng(0).normal(size=(2, *model.image_shape)).astype(np.float32)
    extreme = scaled(model, power)
    assert unevenness(balanced(extreme)) < 3
    np.testing.assert_array_equal(balanced(extreme)(pixels), model(pixels))


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_scaled_copies_are_balanced_as_the_original_is(name):
    """To the bit, but for one power of two a block, to which the cosines of its attention outputs are blind."""
    model = psaq_jax.load_model(GOLDEN / name)
    copy, projection = scaled(model), "attention/projection/kernel"
    assert unevenness(copy) > 50
    for (block, found), (_, expected) in zip(blocks(balanced(copy)), blocks(balanced(model)), strict=True):
        factor, values = found[projection][0, 0] / expected[projection][0, 0], len(found[projection])
        assert np.log2(factor) % 1 == 0, block
        expected[projection] = expected[projection] * factor
        for leaf in ("attention/qkv/kernel", "attention/qkv/bias"):
            queries_keys, made = np.split(expected[leaf], [-values], axis=-1)
            expected[leaf] = np.concatenate([queries_keys, made / factor], axis=-1)
        for leaf, value in expected.items():
            np.testing.assert_array_equal(found[leaf], value, err_msg=f"{block}/{leaf}")


def test_scaled_copies_have_the_originals_images():
    model = reference_vit(1)
    images, copys = (psaq_jax.synthesize(m, SHORT, seed=1).images for m in (model, scaled(model)))
    np.testing.assert_array_equal(images, copys)


def test_recipe_paper_takes_the_model_as_it_is():
    model = reference_vit(1)
    config = dataclasses.replace(SHORT, recipe="paper", parametrization="pixels")
    entropies = [psaq_jax.synthesize(m, config).history["entropy"][0] for m in (model, scaled(model))]
    assert abs(entropies[0] - entropies[1]) > 0.01 * abs(entropies[0])
