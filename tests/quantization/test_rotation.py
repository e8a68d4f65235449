"""Rotating the residual stream leaves the function as it was, whatever the family, and spreads what channels hold."""

import jax
import numpy as np
import pytest
from flax import traverse_util

import psaq_jax
from psaq_jax.models.swin import SwinTransformer
from psaq_jax.quantization.preparation import as_rounded
from psaq_jax.quantization.recipes import DefaultRecipe
from psaq_jax.quantization.rotation import rotated, rotation, streams, turn_stream
from psaq_jax.sites import record
from tests.golden_files import GOLDEN
from tests.quantization.artefacts import random_model
from tests.random_models import random_pixels

pytestmark = pytest.mark.usefixtures("quickly_compiled")

PLAIN = ("hf_vit", "timm_deit_distilled", "hf_dinov2", "hf_dinov2_registers", "hf_dinov2_swiglu")
SWIN = SwinTransformer((32, 32), (2, 2), (8, 16, 32), (2, 2, 1), (2, 4, 4), (16, 32, 64), (4, 4), 5)


def varied(model):
    """The model with LayerNorms' scales and biases, and biases, as trained ones differ; some scales are zero."""
    generator, flat = np.random.default_rng(1), traverse_util.flatten_dict(model.params, sep="/")
    for path, value in flat.items():
        if path.endswith(("norm1/scale", "norm/scale", "bias")):
            flat[path] = value + generator.normal(0, 0.5, value.shape).astype(np.float32)
        if path.endswith("norm2/scale"):
            flat[path] = value.at[::5].set(0)
    return model.replace(params=traverse_util.unflatten_dict(flat, sep="/"))


@pytest.mark.parametrize("name", PLAIN)
def test_a_rotated_model_is_the_same_function(name):
    model = varied(psaq_jax.load_model(GOLDEN / "checkpoints" / name))
    images = np.random.default_rng(0).normal(size=(3, *model.image_shape)).astype(np.float32)
    turned = rotated(model, DefaultRecipe())
    expected = np.asarray(model(images))
    np.testing.assert_allclose(turned(images), expected, atol=1e-5 * np.abs(expected).max())
    turn = rotation(model.module.width, seed=0)
    before, after = (record(m.module, m.params, images, "block_?/residual?")[1] for m in (model, turned))
    for site, x in before.items():
        np.testing.assert_allclose(after[site], x @ turn, atol=1e-5 * np.abs(x).max(), err_msg=site)


@pytest.mark.parametrize("dead, turned", [(8, True), (24, False), (32, False)])
def test_a_stage_whose_merging_has_lost_too_many_channels_stays(dead, turned):
    """Fewer are left than the merging has outputs: no bias before it gives what its LayerNorm's gave."""
    model, images = varied(random_model(SWIN)), random_pixels(SWIN)
    flat = traverse_util.flatten_dict(model.params, sep="/")
    assert flat["stage_1/merging/norm/scale"].shape == (64,) and flat["stage_1/merging/reduction/kernel"].shape[1] == 32
    flat["stage_1/merging/norm/scale"] = flat["stage_1/merging/norm/scale"].at[: 2 * dead].set(0)
    model = model.replace(params=traverse_util.unflatten_dict(flat, sep="/"))
    found, expected = rotated(model, DefaultRecipe()), np.asarray(model(images))
    np.testing.assert_allclose(found(images), expected, atol=1e-5 * np.abs(expected).max())
    assert [stream.width for stream in streams(model.module, flat)] == [16] * turned + [32]


@pytest.mark.parametrize("convention", ["transformers", "timm"])
def test_a_swin_transformer_turns_its_stages_but_the_first(convention):
    """The biases of mergings' LayerNorms, which no layer behind them can take, included."""
    module = SWIN.clone(convention=convention)
    model, images = varied(random_model(module)), random_pixels(module)
    turned = rotated(model, DefaultRecipe())
    expected = np.asarray(model(images))
    np.testing.assert_allclose(turned(images), expected, atol=1e-5 * np.abs(expected).max())
    before, after = (record(m.module, m.params, images, "stage_?/block_?/residual?")[1] for m in (model, turned))
    for site, x in before.items():
        turn = np.eye(8) if site.startswith("stage_0") else rotation(x.shape[-1], seed=0)
        np.testing.assert_allclose(after[site], x @ turn, atol=1e-5 * np.abs(x).max(), err_msg=site)
    assert np.abs(turned.params["stage_1"]["merging"]["norm"]["bias"]).max() > 0.01


@pytest.mark.parametrize("convention", ["transformers", "timm"])
def test_a_stage_whose_windows_overhang_stays(convention):
    """A zero that fills a window up is none behind a layer that took the LayerNorm's bias."""
    module = SWIN.clone(image_size=(32, 28), convention=convention)  # maps of 16x14, 8x7 and 4x4
    model, images = varied(random_model(module)), random_pixels(module)
    turned, expected = rotated(model, DefaultRecipe()), np.asarray(model(images))
    np.testing.assert_allclose(turned(images), expected, atol=1e-5 * np.abs(expected).max())
    same = {
        stage: np.array_equal(*(m.params[stage]["block_0"]["attention"]["qkv"]["kernel"] for m in (model, turned)))
        for stage in ("stage_0", "stage_1", "stage_2")
    }
    assert same == {"stage_0": True, "stage_1": True, "stage_2": False}


def test_a_rotation_keeps_lengths_and_the_vector_of_ones():
    turn, other = rotation(48, seed=0), rotation(48, seed=1)
    np.testing.assert_allclose(turn @ turn.T, np.eye(48), atol=1e-6)
    np.testing.assert_allclose(np.ones(48) @ turn, 1, atol=1e-6)
    assert np.abs(turn - other).max() > 0.1


def test_a_channel_larger_than_others_is_spread():
    model = psaq_jax.load_model(GOLDEN / "checkpoints" / "hf_dinov2")
    flat, images = traverse_util.flatten_dict(model.params, sep="/"), np.zeros((1, *model.image_shape), np.float32)
    positions = flat["position_embedding"]
    flat["position_embedding"] = positions.at[:, 3].set(100.0 * (-1) ** np.arange(len(positions)))
    flat["block_0/norm1/scale"] = np.ones(model.module.width, np.float32)
    model = model.replace(params=traverse_util.unflatten_dict(flat, sep="/"))

    def spread(model):
        _, found = record(model.module, model.params, images, "block_0/norm1_output")
        reach = np.abs(found["block_0/norm1_output"]).max((0, 1))
        return reach.max() / np.median(reach)

    assert spread(rotated(model, DefaultRecipe())) < 0.5 * spread(model)


@pytest.mark.parametrize("name", ["hf_swin", "timm_vit"])
def test_what_lets_no_rotation_through_stays_as_it_is(name):
    model = psaq_jax.load_model(GOLDEN / "checkpoints" / name)
    model = model.replace(module=model.module.clone(qkv_bias=False))
    assert rotated(model, DefaultRecipe()) is model


@pytest.mark.parametrize("options", [None, DefaultRecipe(rotate=False)])
def test_so_do_recipes_that_do_not_rotate(options):
    model = psaq_jax.load_model(GOLDEN / "checkpoints" / "timm_vit")
    assert as_rounded(model, np.zeros((1, *model.image_shape), np.float32), options, 4, 8) is model


def test_products_keep_their_precision_on_accelerators():
    """Where the default is less: TF32 on GPUs, bfloat16 on TPUs."""
    model = psaq_jax.load_model(GOLDEN / "checkpoints" / "hf_dinov2")
    flat = traverse_util.flatten_dict(model.params, sep="/")
    (stream,) = streams(model.module, flat)
    text = str(jax.make_jaxpr(lambda flat, turn: turn_stream(flat, turn, stream))(flat, rotation(stream.width, 0)))
    assert text.count("dot_general[") == text.count("HIGHEST, Precision.HIGHEST") > 0
