"""`load_model`: sources, formats, strictness, and one line for everything that is wrong with a checkpoint."""

import json
import pathlib

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import constants

import psaq_jax
from psaq_jax.models.sources import DOWNLOADED, find_checkpoint
from tests.golden_files import GOLDEN
from tests.models.checkpoints import (
    BFLOAT16,
    copied,
    edit_config,
    refused,
    tensors,
    write_config,
    write_tensors,
)

HEAD = "classifier.weight"


@pytest.fixture
def vit(tmp_path):
    return copied("hf_vit", tmp_path)


def shard(directory, files=("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")):
    """Splits model.safetensors in two."""
    values = tensors(directory)
    (directory / "model.safetensors").unlink()
    weight_map = {name: files[i % 2] for i, name in enumerate(sorted(values))}
    for file in files:
        write_tensors(directory, {n: v for n, v in values.items() if weight_map[n] == file}, file)
    write_index(directory, weight_map)
    return weight_map


def write_index(directory, weight_map):
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def same_params(a, b):
    flat_a, flat_b = ({"/".join(k): v for k, v in _flat(m.params).items()} for m in (a, b))
    return flat_a.keys() == flat_b.keys() and all(np.array_equal(flat_a[k], flat_b[k]) for k in flat_a)


def _flat(tree):
    from flax import traverse_util

    return traverse_util.flatten_dict(tree)


# Sources and formats


def test_a_local_directory_as_path_or_text(vit):
    assert same_params(psaq_jax.load_model(vit), psaq_jax.load_model(str(vit)))
    assert psaq_jax.load_model(vit).source == str(vit)


def test_shards_are_read_as_one_file(vit):
    whole = psaq_jax.load_model(vit)
    shard(vit)
    assert same_params(whole, psaq_jax.load_model(vit))


@pytest.mark.parametrize("dtype", [np.dtype("float16"), BFLOAT16, np.dtype("float64")], ids=str)
def test_other_floating_point_types_become_float32(vit, dtype):
    values = {k: v.astype(dtype) for k, v in tensors(vit).items()}
    write_tensors(vit, values)
    model = psaq_jax.load_model(vit)
    for leaf in _flat(model.params).values():
        assert leaf.dtype == np.float32
    np.testing.assert_array_equal(model.params["head"]["kernel"], values[HEAD].astype(np.float32).T)


def test_integer_weights_are_refused(vit):
    write_tensors(vit, tensors(vit) | {HEAD: np.ones(tensors(vit)[HEAD].shape, np.int8)})
    assert f"{HEAD} is I8; expected float16, bfloat16 or float32" in refused(vit)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pth", "weights.safetensors"])
def test_other_weights_get_a_line_that_says_how_to_convert(vit, name):
    (vit / "model.safetensors").rename(vit / name)
    message = refused(vit)
    for part in (name, "never read", "safe_serialization=True", "safetensors.torch.save_file"):
        assert part in message


def make_hub_cache(cache, checkpoint, commit, revision):
    """The layout of the hub's cache: blobs, refs and snapshots of links."""
    root = cache / "models--someone--tiny-vit"
    for folder in ("blobs", "refs", f"snapshots/{commit}"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "refs" / revision).write_text(commit)
    for path in checkpoint.iterdir():
        blob = root / "blobs" / f"{commit[:8]}{path.name}"
        blob.write_bytes(path.read_bytes())
        (root / "snapshots" / commit / path.name).symlink_to(pathlib.Path("../../blobs") / blob.name)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An offline hub whose cache holds two revisions of someone/tiny-vit."""
    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)
    make_hub_cache(cache, GOLDEN / "checkpoints/hf_vit", "a" * 40, "main")
    make_hub_cache(cache, GOLDEN / "checkpoints/hf_deit", "b" * 40, "other")


def test_a_hub_id_works_offline_from_the_cache(hub):
    model = psaq_jax.load_model("someone/tiny-vit")
    assert same_params(model, psaq_jax.load_model(GOLDEN / "checkpoints/hf_vit"))
    assert model.source == "someone/tiny-vit"


@pytest.mark.parametrize("revision", ["other", "b" * 40])
def test_a_revision_is_a_branch_or_a_commit(hub, revision):
    model = psaq_jax.load_model("someone/tiny-vit", revision=revision)
    assert same_params(model, psaq_jax.load_model(GOLDEN / "checkpoints/hf_deit"))


def test_a_hub_id_that_is_not_cached_is_one_line(hub):
    assert "the Hugging Face hub could not give it" in refused("someone/else")
    assert "the Hugging Face hub could not give it" in refused("someone/tiny-vit", revision="nowhere")


def test_a_hub_id_downloads_config_preprocessor_and_safetensors_alone(monkeypatch, tmp_path):
    asked = {}

    def snapshot_download(name, **arguments):
        asked.update(arguments, name=name)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert find_checkpoint("owner/name", "v1") == tmp_path
    assert asked == {"name": "owner/name", "revision": "v1", "allow_patterns": list(DOWNLOADED)}
    assert all(p.endswith((".json", ".safetensors")) for p in DOWNLOADED)


# Image sizes


@pytest.mark.parametrize("name", ["hf_vit", "hf_deit", "timm_vit", "hf_dinov2"])
def test_image_size_interpolates_the_position_embeddings(name):
    directory = GOLDEN / "checkpoints" / name
    own, larger = psaq_jax.load_model(directory), psaq_jax.load_model(directory, image_size=(64, 48))
    assert larger.image_size == larger.preprocessing.image_size == (64, 48)
    patches = (64 // own.module.patch_size[0]) * (48 // own.module.patch_size[1])
    special = own.params["position_embedding"].shape[0] - own.module.grid[0] * own.module.grid[1]
    assert larger.params["position_embedding"].shape[0] == special + patches
    same = psaq_jax.load_model(directory, image_size=own.image_size)
    assert same_params(own, same)


@pytest.mark.parametrize("size", [0, -1, 2.5, "224", True, (32,), (32, 32, 3), 10**9, (32, None), ()])
def test_impossible_image_sizes(vit, size):
    assert "image_size is" in refused(vit, image_size=size)


def test_an_image_smaller_than_a_patch(vit):
    assert "smaller than one patch" in refused(vit, image_size=4)


@pytest.mark.parametrize("name", ["hf_swin", "timm_swin"])
def test_swin_runs_at_its_own_size_only(name):
    assert "this family runs at its own (32, 32) only" in refused(GOLDEN / "checkpoints" / name, image_size=64)


# What is wrong with a source


@pytest.mark.parametrize(
    "source",
    ["/no/such/directory", "./nowhere", "../x", "a/b/c", "", "x\0y", "a\nb", "n" * 5000, "owner/" + "/", "é/é"],
)
def test_no_such_source(source):
    assert "no such directory" in refused(source)


def test_a_bundled_model_that_is_not_there():
    assert "is not bundled; bundled are" in refused("bundled:../models")
    assert "is not bundled" in refused("bundled:")


def test_a_file_where_a_directory_is_expected(vit, monkeypatch):
    assert "is a file, expected a directory" in refused(vit / "config.json")
    monkeypatch.chdir(vit)
    assert "is a file, expected a directory" in refused("model.safetensors")


def test_an_empty_directory(tmp_path):
    assert "config.json: no such file" in refused(tmp_path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is not readable JSON"),
        (b"{", "is not readable JSON"),
        (b"\xff\xfe\x00", "is not readable JSON"),
        (b"[" * 100_000, "is not readable JSON"),
        (b"[1]", "holds a list, expected a JSON object"),
        (b"null", "holds a NoneType"),
        (b"7", "holds a int"),
    ],
    ids=["empty", "cut off", "not text", "nested too deep", "list", "null", "number"],
)
@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_broken_json(vit, name, content, expected):
    (vit / name).write_bytes(content)
    message = refused(vit)
    assert expected in message
    assert name in message


def test_a_directory_where_a_file_is_expected(vit):
    (vit / "config.json").unlink()
    (vit / "config.json").mkdir()
    assert "is not readable JSON" in refused(vit)


def test_a_directory_called_model_safetensors(vit):
    (vit / "model.safetensors").unlink()
    (vit / "model.safetensors").mkdir()
    assert "expected model.safetensors" in refused(vit)


# What is wrong with the weights


@pytest.mark.parametrize("keep", [0, 4, 8, 100, 5000, -1])
def test_truncated_safetensors(vit, keep):
    path = vit / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert "is not a whole safetensors file" in refused(vit)


@pytest.mark.parametrize("start", [b"\xff" * 8, b"PK\x03\x04" * 8, (2**40).to_bytes(8, "little")])
def test_something_else_called_safetensors(vit, start):
    path = vit / "model.safetensors"
    path.write_bytes(start + path.read_bytes()[8:])
    assert "is not a whole safetensors file" in refused(vit)


def test_everything_missing_misshapen_and_unexpected_is_in_one_line(vit):
    values = tensors(vit)
    del values["classifier.bias"], values["vit.layernorm.weight"]
    values[HEAD] = values[HEAD].T
    values |= {"extra.weight": np.zeros(2, np.float32), "two\nlines": np.zeros(2, np.float32)}
    write_tensors(vit, values)
    message = refused(vit)
    assert "missing: " in message
    for part in ("classifier.bias [7]", "vit.layernorm.weight [36]", f"{HEAD} is [36, 7], expected [7, 36]"):
        assert part in message
    assert "unexpected: 'two\\nlines', extra.weight" in message


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_named(vit, value):
    values = tensors(vit)
    values["vit.encoder.layer.1.attention.attention.key.bias"][3] = value
    write_tensors(vit, values)
    assert "NaN or infinite weights in vit.encoder.layer.1.attention.attention.key.bias;" in refused(vit)


def test_float64_beyond_float32(vit):
    write_tensors(vit, tensors(vit) | {"classifier.bias": np.full(7, 1e300)})
    assert "NaN or infinite weights in classifier.bias" in refused(vit)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "..", "", "a/b.safetensors", "x\0y", "gone"])
def test_an_index_names_files_beside_it_only(vit, name):
    weight_map = shard(vit)
    (vit.parent / "secret.safetensors").write_bytes(b"")
    write_index(vit, weight_map | {HEAD: name})
    assert "expected a file beside it" in refused(vit)


@pytest.mark.parametrize("weight_map", [None, {}, [], {"a": 3}, "model.safetensors"], ids=str)
def test_an_index_without_a_map(vit, weight_map):
    shard(vit)
    write_index(vit, weight_map)
    assert "has no usable weight_map" in refused(vit)


def test_a_missing_shard_or_a_tensor_in_two(vit):
    weight_map = shard(vit)
    first, second = sorted(set(weight_map.values()))
    write_tensors(vit, {n: np.zeros(1, np.float32) for n in weight_map}, second)
    assert "which another shard holds too" in refused(vit)
    (vit / second).unlink()
    assert f"names shard '{second}'" in refused(vit)
    write_index(vit, {n: first for n in weight_map})
    assert "missing: " in refused(vit)


# What is wrong between config and weights


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"num_hidden_layers": 2}, "unexpected: vit.encoder.layer.2"),
        ({"num_hidden_layers": 999}, "declares 999 blocks"),
        ({"hidden_size": 16384}, "wrong shape"),
        ({"image_size": 4096, "patch_size": 1}, "wrong shape"),
        ({"intermediate_size": 131072}, "wrong shape"),
        ({"qkv_bias": False}, "unexpected: vit.encoder.layer.0.attention.attention.key.bias"),
        ({"patch_size": 4}, "wrong shape"),
    ],
    ids=lambda value: next(iter(value), "") if isinstance(value, dict) else "",
)
def test_a_config_of_another_model(vit, changes, expected):
    edit_config(vit, **changes)
    assert expected in refused(vit)


def test_timms_config_with_the_weights_of_the_other_layout(tmp_path):
    directory = copied("timm_swin", tmp_path)
    values = tensors(directory)
    values["head.weight"] = values.pop("head.fc.weight")
    write_tensors(directory, values)
    assert "unexpected: head.fc.bias" in refused(directory)


def test_pretrained_cfg_of_another_type(tmp_path):
    directory = copied("timm_vit", tmp_path)
    edit_config(directory, pretrained_cfg=[1])
    assert "pretrained_cfg" in refused(directory)


def test_unsupported_architectures_need_no_weights(tmp_path):
    write_config(tmp_path, {"architectures": ["BertModel"], "model_type": "bert"})
    assert "supported are ViTForImageClassification" in refused(tmp_path)
    write_config(tmp_path, {"architecture": "resnet50", "num_classes": 10})
    assert "supported are timm's" in refused(tmp_path)
