"""What the tests of damaged and altered artefacts share: a small artefact, and ways to alter it."""

import hashlib
import json

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util

from psaq_jax import InputError, Model, quantize
from psaq_jax.models.loading import abstract_params
from psaq_jax.models.preprocessing import Preprocessing
from psaq_jax.models.vit import VisionTransformer
from psaq_jax.quantization import packing
from psaq_jax.quantization.artefact import load_quantized, save_quantized

MODULE = VisionTransformer((8, 8), (4, 4), width=8, depth=1, heads=2, hidden=12, classes=3)
KERNEL, SCALE = "params/head/kernel/packed", "params/head/kernel/code_scale"
ACTIVATION = "params/block_0/mlp/activation_scale"
SITE = "sites/block_0/norm1_output"
NAMES = ("config.json", "preprocessor_config.json", "model.safetensors")


def save_artefact(directory):
    flat = {
        path: jnp.asarray(np.random.default_rng(0).normal(0, 0.3, leaf.shape), jnp.float32)
        for path, leaf in abstract_params(MODULE).items()
    }
    half = (0.5,) * 3
    params = traverse_util.unflatten_dict(flat, sep="/")
    model = Model(params, MODULE, ("a", "b", "c"), Preprocessing((8, 8), half, half), "source")
    outside = {"query", "key", "value", "attention_probabilities"}
    ranges = {name: (-1.0, 1.5) for name in model.sites if name.rpartition("/")[2] not in outside}
    return save_quantized(quantize(model, ranges, 4, 8), directory)


def rewrite(path, change):
    """Alters a JSON file."""
    value = json.loads(path.read_text())
    changed = change(value)
    path.write_text(json.dumps(value if changed is None else changed))


def mend_hash(directory):
    content = (directory / "model.safetensors").read_bytes()

    def change(config):
        config["quantization_config"]["model_bytes"] = len(content)
        config["quantization_config"]["model_sha256"] = hashlib.sha256(content).hexdigest()
        config["quantization_config"].pop("sha256", None)  # as artefacts of before there was one

    rewrite(directory / "config.json", change)


def retensor(directory, change, metadata=packing.FORMAT):
    """Alters the tensors and mends the hashes."""
    path = directory / "model.safetensors"
    tensors = {name: value.copy() for name, value in safetensors.numpy.load_file(path).items()}
    change(tensors)
    path.write_bytes(safetensors.numpy.save(tensors, {"format": metadata}))
    mend_hash(directory)


def refused(directory, file, *fields):
    with pytest.raises(InputError) as caught:
        load_quantized(directory)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 700
    assert message.startswith(f"{directory / file}: "), message
    assert all(field in message for field in fields), message


def put(key, value):
    """Sets `key` ("a.b.0.c") inside quantization_config."""

    def change(config):
        *path, last = key.split(".")
        place = config["quantization_config"]
        for part in path:
            place = place[int(part) if isinstance(place, list) else part]
        place[int(last) if isinstance(place, list) else last] = value

    return change
