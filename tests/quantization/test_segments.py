"""Chains of segments: together they are the model, apart they name their sites and layers."""

import numpy as np
import pytest

import psaq_jax
from psaq_jax.quantization import streaming
from psaq_jax.quantization.recipes import site_filter
from psaq_jax.quantization.segments import chain, parts_of
from tests.golden_files import GOLDEN

pytestmark = pytest.mark.usefixtures("quickly_compiled")

FAMILIES = (
    "checkpoints/hf_vit", "checkpoints/hf_deit_distilled", "checkpoints/hf_dinov2_registers", "more/hf_swin_padded",
)  # fmt: skip


@pytest.fixture(scope="module", params=FAMILIES)
def model(request):
    return psaq_jax.load_model(GOLDEN / request.param)


def pixels(model, count=3):
    return np.random.default_rng(0).normal(size=(count, *model.image_shape)).astype(np.float32)


@pytest.mark.parametrize("numbers", [streaming.NUMBERS, 1])  # 1: as if the images were large
def test_segments_in_turn_give_the_logits_of_the_model(model, monkeypatch, numbers):
    monkeypatch.setattr(streaming, "NUMBERS", numbers)
    x = images = pixels(model)
    for link in chain(model.module, model.params, model.image_shape):
        size = streaming.batch_size(link.segment, link.parameters(model.params), {}, x)
        assert size == (1 if numbers == 1 else len(images))
        x = streaming.propagate(link.segment, link.parameters(model.params), {}, x)
    np.testing.assert_allclose(x, model(images), atol=1e-5)


def test_equal_blocks_are_equal_segments(model):
    """So they compile once. Swin's four differ: in their stage, and in whether their windows are shifted."""
    links = chain(model.module, model.params, model.image_shape)
    blocks = [link.segment for link in links if link.path]
    assert len(set(blocks)) == (1 if hasattr(model.module, "depth") else len(blocks))


def test_segments_share_out_the_default_sites_in_running_order(model):
    x, names = pixels(model, 1), []
    for link in chain(model.module, model.params, model.image_shape):
        parameters = link.parameters(model.params)
        names += [link.full_name(name) for name in parts_of(link.segment, parameters, x).sites]
        x = streaming.propagate(link.segment, parameters, {}, x)
    assert names == list(filter(site_filter("default"), model.sites))


def test_batches_are_padded_with_repeats_and_masked():
    found = list(streaming.batches(np.arange(5), size=3))
    np.testing.assert_array_equal([b for b, _ in found], [[0, 1, 2], [3, 4, 4]])
    np.testing.assert_array_equal([m for _, m in found], [[1, 1, 1], [1, 1, 0]])
