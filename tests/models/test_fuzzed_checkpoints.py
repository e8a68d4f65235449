"""Damaged checkpoints: an InputError in one line, or the right logits; never a traceback or another model."""

import functools
import math
import pathlib
import tempfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import psaq_jax
from psaq_jax.errors import InputError
from tests.golden_files import GOLDEN
from tests.models.checkpoints import (
    copied,
    read_config,
    reference,
    tensors,
    write_config,
    write_tensors,
)

NAMES = ("hf_vit", "timm_swin")
FUZZ = settings(
    max_examples=25, deadline=None, database=None, derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip


@functools.cache
def workplace(name) -> pathlib.Path:
    """One directory a checkpoint, so that models that load well compile once."""
    return copied(name, pathlib.Path(tempfile.mkdtemp()))


def restore(name) -> pathlib.Path:
    directory = workplace(name)
    for file in (GOLDEN / "checkpoints" / name).iterdir():
        (directory / file.name).write_bytes(file.read_bytes())
    return directory


def error_or_right_logits(name, tolerance=1e-5) -> bool:
    """Whether it loaded; if so, its logits are those of its own library."""
    try:
        model = psaq_jax.load_model(workplace(name))
    except InputError as error:
        assert "\n" not in str(error)
        assert len(str(error)) > 20
        return False
    pixels, logits = reference(name)
    np.testing.assert_allclose(model(pixels), logits, atol=tolerance)
    return True


def dropped(values, key, data):
    del values[key]


def renamed(values, key, data):
    suffix = data.draw(st.text(max_size=3))
    values[key + suffix] = values.pop(key)


def moved(values, key, data):
    other = data.draw(st.sampled_from(sorted(values)))
    values[other] = values.pop(key)


def reshaped(values, key, data):
    new = {0: (-1,), 1: (*values[key].shape, 1), 2: (1, *values[key].shape)}[data.draw(st.integers(0, 2))]
    values[key] = values[key].reshape(new)


def cut(values, key, data):
    values[key] = values[key][: data.draw(st.integers(0, len(values[key])))]


def poisoned(values, key, data):
    flat = values[key].reshape(-1)
    flat[data.draw(st.integers(0, flat.size - 1))] = data.draw(st.sampled_from([np.nan, np.inf, -np.inf]))


def retyped(values, key, data):
    values[key] = values[key].astype(data.draw(st.sampled_from(["int32", "uint8", "bool", "float64"])))


def added(values, key, data):
    values[data.draw(st.sampled_from(["mask_token", "x.pooler.dense.weight", "x", key + ".weight"]))] = values[key]


DAMAGE = (dropped, renamed, moved, reshaped, cut, poisoned, retyped, added)


@FUZZ
@given(st.data())
def test_damaged_tensors(data):
    name = data.draw(st.sampled_from(NAMES))
    directory = restore(name)
    values = {k: v.copy() for k, v in tensors(directory).items()}
    for damage in data.draw(st.lists(st.sampled_from(DAMAGE), max_size=2)):
        damage(values, data.draw(st.sampled_from(sorted(values))), data)
    write_tensors(directory, values)
    error_or_right_logits(name)


@FUZZ
@given(st.sampled_from(NAMES), st.floats(0, 1), st.integers(0, 255))
def test_truncated_and_overwritten_files(name, where, byte):
    path = restore(name) / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(where * len(content))])
    assert error_or_right_logits(name) == (where == 1)
    header = int.from_bytes(content[:8], "little")
    position = int(where * (header + 7))  # within the length and the header, which say what is where
    path.write_bytes(content[:position] + bytes([byte]) + content[position + 1 :])
    try:
        psaq_jax.load_model(workplace(name))  # an overwritten offset may lead to other numbers, undetectably
    except InputError as error:
        assert "\n" not in str(error)


WRONG = st.one_of(
    st.none(), st.booleans(), st.text(max_size=4),
    st.sampled_from([-1, 0, 10**9, 10**30, math.nan, math.inf, -math.inf]),
    st.lists(st.integers(-1, 9), max_size=3), st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
)  # fmt: skip


@FUZZ
@given(st.data())
def test_wrong_config_fields(data):
    name = data.draw(st.sampled_from(NAMES))
    directory = restore(name)
    config = read_config(directory)
    section = config["model_args"] if name == "timm_swin" and data.draw(st.booleans()) else config
    field = data.draw(st.sampled_from(sorted(section)))
    if data.draw(st.booleans()):
        section[field] = data.draw(WRONG)
    else:
        del section[field]
    write_config(directory, config)
    # Heads, windows, epsilon, activation and bias leave no trace in the shapes: a value that is valid is believed.
    believed = {"num_heads", "window_size", "img_size", "patch_size", "depths", "hidden_act", "layer_norm_eps"}
    if field in believed | {"num_attention_heads", "image_size", "architectures", "architecture"}:
        try:
            psaq_jax.load_model(directory)
        except InputError as error:
            assert "\n" not in str(error)
    else:
        error_or_right_logits(name)


@pytest.mark.parametrize("name", NAMES)
def test_whole_checkpoints_pass(name):
    restore(name)
    assert error_or_right_logits(name)
