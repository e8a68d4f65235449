"""Which files of weights a checkpoint has, and whether they are those of before."""

import json
import os

from psaq_jax.models.tensors import file_stamps

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def test_stamps_change_with_every_shard(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"b": SHARDS[1], "a": SHARDS[0]}}))
    for size, name in enumerate(SHARDS, 1):
        (tmp_path / name).write_bytes(b"x" * size)
        os.utime(tmp_path / name, ns=(0, 10**18 + size))
    assert file_stamps(tmp_path) == ((SHARDS[0], 1, 10**18 + 1), (SHARDS[1], 2, 10**18 + 2))
