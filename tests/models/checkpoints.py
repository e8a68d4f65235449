"""Copies of the golden checkpoints that tests change: config fields, tensors, files."""

import json
import pathlib
import shutil

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import psaq_jax
from psaq_jax.errors import InputError
from tests.golden_files import GOLDEN, golden, nhwc

ALL = sorted(path.parent.name for path in (GOLDEN / "checkpoints").glob("*/config.json"))
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def copied(name: str, directory: pathlib.Path) -> pathlib.Path:
    """A golden checkpoint in a directory of its own."""
    target = directory / name
    shutil.copytree(GOLDEN / "checkpoints" / name, target)
    return target


def reference(name: str) -> tuple[np.ndarray, np.ndarray]:
    """(pixels NHWC, logits) of a golden checkpoint, from its own library."""
    archive = golden(f"checkpoints/{name}/reference.npz")
    return nhwc(archive["pixel_values_nchw"]), archive["logits"]


def read_config(directory) -> dict:
    return json.loads((directory / "config.json").read_text())


def write_config(directory, config) -> None:
    (directory / "config.json").write_text(json.dumps(config))


def edit_config(directory, **changes) -> None:
    write_config(directory, read_config(directory) | changes)


def tensors(directory) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(directory / "model.safetensors")


def write_tensors(directory, values, file="model.safetensors") -> None:
    safetensors.numpy.save_file({k: np.ascontiguousarray(v) for k, v in values.items()}, directory / file)


def refused(source, **arguments) -> str:
    """The message of the InputError that loading raises, which must be one line."""
    with pytest.raises(InputError) as caught:
        psaq_jax.load_model(source, **arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert "\r" not in message
    return message


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
