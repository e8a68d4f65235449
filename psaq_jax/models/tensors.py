"""Named tensors of a checkpoint's safetensors files: found, listed and read. Nothing is ever unpickled."""

import os
import pathlib
import re

import numpy as np
import safetensors

from psaq_jax import files
from psaq_jax.errors import InputError, reading, reason_of
from psaq_jax.models.sources import INDEX, WEIGHTS

OTHERS = {".bin", ".pth", ".pt", ".ckpt", ".msgpack", ".h5", ".onnx", ".safetensors"}
POINTER = b"version https://git-lfs"
FLOATS = ("F16", "BF16", "F32", "F64")


def tensor_files(directory: pathlib.Path) -> list[pathlib.Path]:
    """The safetensors files of a checkpoint: one, or the shards that its index names.

    Raises:
      InputError: none, none that is a file, an index that is damaged, or one that names files elsewhere.
    """
    if (directory / WEIGHTS).is_file():
        return [directory / WEIGHTS]
    if (directory / INDEX).is_file():
        return _shards(directory / INDEX)
    for path in (directory / WEIGHTS, directory / INDEX):
        if os.path.lexists(path):
            _refuse_irregular(path)
    try:
        others = sorted(p.name for p in directory.iterdir() if p.suffix in OTHERS)
    except OSError as error:
        raise InputError(f"{directory}: cannot be listed ({reason_of(error)})") from None
    shards = [name for name in others if re.fullmatch(r"model-\d+-of-\d+\.safetensors", name)]
    if shards:
        raise InputError(f"{directory}: found {shards[0]}, but {INDEX} is missing; download it too")
    safe = [name for name in others if name.endswith(".safetensors")]
    rename = f"rename {safe[0]} if it holds the whole model (merge an adapter into its model before); " if safe else ""
    raise InputError(
        f"{directory}: found {', '.join(others[:8]) or 'no weights'}, expected {WEIGHTS} (or {INDEX}); "
        f"{rename}pickled weights are never read: convert them where you trust them, with "
        "model.save_pretrained(DIR, safe_serialization=True), or for timm "
        "safetensors.torch.save_file(model.state_dict(), FILE)"
    )


def _refuse_irregular(path: pathlib.Path) -> None:
    try:
        files.check_regular(path)
    except OSError as error:
        raise InputError(
            f"{path}: is no file of weights ({error.strerror or error}), expected one; download it again"
        ) from None


def file_stamps(directory: pathlib.Path) -> tuple[tuple[str, int, int], ...]:
    """(name, bytes, time of change in ns) of a checkpoint's files of weights: other ones since, other weights."""
    stats = [(path.name, path.stat()) for path in tensor_files(directory)]
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


def _shards(index: pathlib.Path) -> list[pathlib.Path]:
    weight_map = files.read_json(index, "expected a map of tensor names to shards").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise InputError(f"{index}: has no usable weight_map, expected tensor names to shard files; download it again")
    shards = sorted(set(weight_map.values()))
    for shard in shards:
        # A plain name: an index is data from elsewhere, and must not choose files outside its directory.
        plain = "\0" not in shard and len(shard) < 256 and pathlib.PurePath(shard).name == shard
        if not plain or not (index.parent / shard).is_file():
            raise InputError(f"{index}: names shard {shard[:200]!r}, expected a file beside it; download it again")
    return [index.parent / shard for shard in shards]


class TensorReader:
    """Reads named tensors of several safetensors files as float32; opening it reads the headers alone.

    Attributes:
      shapes: {tensor name: shape} of all files.
    Raises:
      InputError: a file that is cut off or damaged, or a tensor that two files have.
    """

    def __init__(self, paths: list[pathlib.Path]):
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._types: dict[str, str] = {}
        self._files: dict[str, safetensors.safe_open] = {}
        for path in paths:
            with reading(path), path.open("rb") as file:  # safetensors calls missing what it has no right to read
                start = file.read(len(POINTER))
            if start == POINTER:
                raise InputError(f"{path}: is git-lfs's pointer to a file, expected the file; fetch it: git lfs pull")
            try:
                self._add(path, safetensors.safe_open(path, framework="numpy"))
            except (OSError, ValueError, safetensors.SafetensorError) as error:
                if isinstance(error, InputError):
                    raise
                raise InputError(
                    f"{path}: is not a whole safetensors file ({reason_of(error)}); download it again"
                ) from None

    def _add(self, path, file):
        for name in file.keys():
            if name in self.shapes:
                raise InputError(f"{path}: holds tensor {name!r}, which another shard holds too; download it again")
            tensor = file.get_slice(name)
            self.shapes[name] = tuple(tensor.get_shape())
            self._types[name] = tensor.get_dtype()
            self._files[name] = file

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._files.clear()

    def not_floats(self, names) -> list[str]:
        """Those of `names` that are neither float16, bfloat16, float32 nor float64, with what they are."""
        return [f"{name} is {self._types[name]}" for name in names if self._types[name] not in FLOATS]

    def read(self, name: str) -> np.ndarray:
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, which the caller reports
            return np.asarray(self._files[name].get_tensor(name)).astype(np.float32)
