"""Damaged and mismatched checkpoints: one line says what is wrong, and nothing is loaded."""

import os

import numpy as np
import pytest

from tests.models.checkpoints import (
    copied,
    edit_config,
    refused,
    shard,
    tensors,
    write_config,
    write_index,
    write_tensors,
)

HEAD = "classifier.weight"


@pytest.fixture
def vit(tmp_path):
    return copied("hf_vit", tmp_path)


# What is wrong with a source


@pytest.mark.parametrize(
    "source",
    ["/no/such/directory", "./nowhere", "../nowhere", "a/b/c", "", "x\0y", "a\nb", "n" * 5000, "owner/" + "/", "é/é"],
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


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_pipes_devices_and_giants_are_not_read(vit, name):
    (vit / name).unlink()
    os.mkfifo(vit / name)
    assert f"{name}: is not readable JSON (not a regular file)" in refused(vit)
    (vit / name).unlink()
    (vit / name).symlink_to("/dev/zero")
    assert f"{name}: is not readable JSON (not a regular file)" in refused(vit)
    (vit / name).unlink()
    with (vit / name).open("wb") as file:
        file.truncate(2**40)
    assert f"{name}: is not readable JSON ({2**40} bytes, expected at most" in refused(vit)


@pytest.mark.parametrize(
    ("make", "expected", "of_json"),
    [
        (lambda path: path.mkdir(), "not a regular file", "is not readable JSON"),
        (os.mkfifo, "not a regular file", "is not readable JSON"),
        (lambda path: path.symlink_to("gone"), "a link to nothing", "is not readable JSON"),
        (lambda path: path.symlink_to(path), "Too many levels of symbolic links", "cannot be read"),
    ],
    ids=["directory", "pipe", "link to nothing", "link to itself"],
)
def test_what_is_no_file_is_not_taken_for_one_nor_for_none(vit, make, expected, of_json):
    names = {"preprocessor_config.json": of_json, "model.safetensors": "is no file of weights"}
    for name, message in names.items():
        content = (vit / name).read_bytes()
        (vit / name).unlink()
        make(vit / name)
        found = refused(vit)
        assert f"{name}: {message} (" in found and expected in found
        (vit / name).rmdir() if (vit / name).is_dir() else (vit / name).unlink()
        (vit / name).write_bytes(content)


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
    assert "NaN, infinite, or beyond float32 in vit.encoder.layer.1.attention.attention.key.bias;" in refused(vit)


def test_float64_beyond_float32(vit):
    write_tensors(vit, tensors(vit) | {"classifier.bias": np.full(7, 1e300)})
    assert "NaN, infinite, or beyond float32 in classifier.bias;" in refused(vit)


@pytest.mark.parametrize("damage", [lambda v: v.astype(np.int8), lambda v: v * np.nan], ids=["integers", "NaN"])
def test_of_many_wrong_weights_the_first_are_named(vit, damage):
    values = {name: damage(value) for name, value in tensors(vit).items()}
    write_tensors(vit, values)
    message = refused(vit)
    assert f" and {len(values) - 6} more; expected " in message and len(message) < 600


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "..", "", "a/b.safetensors", "x\0y", "gone"])
def test_an_index_names_files_beside_it_only(vit, name):
    weight_map = shard(vit)
    (vit.parent / "secret.safetensors").write_bytes(b"")
    write_index(vit, weight_map | {HEAD: name})
    assert "expected a file beside it" in refused(vit)


def test_shards_without_their_index(vit):
    shards = sorted(set(shard(vit).values()))
    (vit / "model.safetensors.index.json").unlink()
    assert f"found {shards[0]}, but model.safetensors.index.json is missing; download it too" in refused(vit)


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
