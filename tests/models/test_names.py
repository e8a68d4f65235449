"""Name tables: every parameter has one source tensor, and conversion is a bijection."""

import numpy as np
import pytest

from psaq_jax.errors import InputError
from psaq_jax.models import names
from psaq_jax.models.configs import read_architecture
from psaq_jax.models.loading import abstract_params
from tests.golden_files import GOLDEN
from tests.models.checkpoints import ALL, read_config, tensors


@pytest.mark.parametrize("name", [*ALL, "../paper/vit", "../paper/swin"])
def test_the_table_names_every_tensor_of_the_checkpoint_once(name):
    directory = GOLDEN / "checkpoints" / name
    stored = tensors(directory)
    architecture = read_architecture(read_config(directory), name, lambda: stored)
    paths = abstract_params(architecture.module)
    found = [n for path in paths for n in names.source_names(path, architecture.table, architecture.prefix)]
    assert len(found) == len(set(found))
    assert set(found) == {n for n in stored if not names.IGNORED.fullmatch(n)}


@pytest.mark.parametrize("name", ["hf_vit", "hf_dinov2_registers", "hf_swin", "timm_swin", "timm_deit_distilled"])
def test_to_source_undoes_from_source(name):
    directory = GOLDEN / "checkpoints" / name
    stored = tensors(directory)
    architecture = read_architecture(read_config(directory), name, lambda: stored)
    flat = {}
    for path, leaf in abstract_params(architecture.module).items():
        sources = names.source_names(path, architecture.table, architecture.prefix)
        flat[path] = names.from_source(path, leaf.shape, [stored[n] for n in sources])
        assert flat[path].shape == leaf.shape
    back = names.to_source(flat, architecture.table, architecture.module.patch_size, architecture.prefix)
    assert set(back) == {n for n in stored if not names.IGNORED.fullmatch(n)}
    for key, value in back.items():
        np.testing.assert_array_equal(value, stored[key], err_msg=key)


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (names.ORIGINAL_SWIN, "layers.0.downsample.reduction.weight"),
        (names.timm_swin(4), "layers.1.downsample.reduction.weight"),
        (names.HUGGING_FACE_SWIN, "swin.encoder.layers.0.downsample.reduction.weight"),
    ],
)
def test_the_three_places_of_swins_merging(table, expected):
    assert names.source_names("stage_0/merging/reduction/kernel", table, "swin") == (expected,)


def test_a_parameter_without_a_row_is_a_bug():
    with pytest.raises(KeyError, match="no row of the name table fits 'block_0/nonsense/kernel'"):
        names.source_names("block_0/nonsense/kernel", names.TIMM_VIT)


def test_check_lists_everything_in_one_line():
    expected = {"a": (1, 2), "b": (3,), "c": (4,)}
    with pytest.raises(InputError) as caught:
        names.check(expected, {"a": (2, 1), "c": (4,), "d\n": (5,), "mask_token": (1,)}, "DIR")
    message = str(caught.value)
    assert "\n" not in message
    for part in ("missing: b [3]", "wrong shape: a is [2, 1], expected [1, 2]", "unexpected: 'd\\n'. "):
        assert part in message
    assert "mask_token" not in message
    names.check(expected, expected, "DIR")


@pytest.mark.parametrize(
    "name",
    ["vit.pooler.dense.weight", "dinov2.embeddings.mask_token", "layers.0.blocks.1.attn_mask", "mask_token"],
)
def test_buffers_and_training_tensors_are_ignored(name):
    names.check({}, {name: (1,)}, "DIR")
