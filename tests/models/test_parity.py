"""Logits of every checkpoint in tests/golden against its own library (PyTorch, float32)."""

import numpy as np
import pytest

import psaq_jax
from psaq_jax.sites import record
from tests.golden_files import GOLDEN, golden, nhwc
from tests.models.checkpoints import (
    ALL,
    BFLOAT16,
    copied,
    edit_config,
    read_config,
    reference,
    tensors,
    write_tensors,
)

# Float32 sums in another order, logits of order 1: a correct port is within about 3e-6; 2e-5 is the promise.
TOLERANCE = 5e-6


def test_ten_checkpoints():
    assert len(ALL) == 10


@pytest.mark.parametrize("name", ALL)
def test_logits(name):
    model = psaq_jax.load_model(GOLDEN / "checkpoints" / name)
    pixels, logits = reference(name)
    assert model.image_size == pixels.shape[1:3]
    assert model.classes == len(model.labels) == logits.shape[1]
    found = model(pixels)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, logits, atol=TOLERANCE)


def test_position_embeddings_at_a_larger_image():
    archive = golden("checkpoints/hf_dinov2/reference_larger_image.npz")
    pixels = nhwc(archive["pixel_values_nchw"])
    model = psaq_jax.load_model(GOLDEN / "checkpoints/hf_dinov2", image_size=pixels.shape[1:3])
    assert model.image_size == (72, 72)
    assert model.preprocessing.image_size == (72, 72)
    np.testing.assert_allclose(model(pixels), archive["logits"], atol=TOLERANCE)


def test_patch_embedding_is_the_convolution_of_the_source():
    model = psaq_jax.load_model(GOLDEN / "checkpoints/timm_vit")
    pixels, _ = reference("timm_vit")
    source = tensors(GOLDEN / "checkpoints/timm_vit")
    weight, size = source["patch_embed.proj.weight"], model.module.patch_size[0]  # [out, in, row, column]
    expected = np.zeros((len(pixels), *model.module.grid, model.module.width), np.float32)
    for row in range(model.module.grid[0]):
        for column in range(model.module.grid[1]):
            patch = pixels[:, row * size : (row + 1) * size, column * size : (column + 1) * size]
            expected[:, row, column] = np.einsum("brci,oirc->bo", patch, weight) + source["patch_embed.proj.bias"]
    _, sites = record(model.module, model.params, pixels, "patch_embedding_output")
    found = sites["patch_embedding_output"]
    np.testing.assert_allclose(found, expected.reshape(found.shape), atol=TOLERANCE)


def test_a_model_without_the_query_key_value_bias_is_one_with_a_bias_of_zero(tmp_path):
    pixels, _ = reference("timm_vit")
    with_zeros, without = copied("timm_vit", tmp_path / "zeros"), copied("timm_vit", tmp_path / "without")
    values = tensors(with_zeros)
    write_tensors(with_zeros, {k: 0 * v if k.endswith("qkv.bias") else v for k, v in values.items()})
    write_tensors(without, {k: v for k, v in values.items() if not k.endswith("qkv.bias")})
    edit_config(without, model_args=read_config(without)["model_args"] | {"qkv_bias": False})
    expected, found = psaq_jax.load_model(with_zeros)(pixels), psaq_jax.load_model(without)(pixels)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


@pytest.mark.parametrize(("kind", "tolerance"), [("float16", 2e-3), ("bfloat16", 2e-2)])  # their rounding of weights
def test_half_precision_checkpoints_are_computed_in_float32(tmp_path, kind, tolerance):
    dtype = BFLOAT16 if kind == "bfloat16" else np.dtype(kind)
    directory = copied("hf_vit", tmp_path)
    rounded = {k: v.astype(dtype) for k, v in tensors(directory).items()}
    write_tensors(directory, rounded)
    pixels, logits = reference("hf_vit")
    model = psaq_jax.load_model(directory)
    kernel = model.params["block_0"]["mlp"]["dense1"]["kernel"]
    assert kernel.dtype == np.float32
    weight = rounded["vit.encoder.layer.0.intermediate.dense.weight"]
    np.testing.assert_array_equal(kernel, weight.astype(np.float32).T)
    assert abs(model(pixels) - logits).max() < tolerance * abs(logits).max() * 2
