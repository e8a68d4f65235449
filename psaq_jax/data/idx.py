"""The idx format of MNIST and Fashion-MNIST (yann.lecun.com/exdb/mnist), gzipped or not: uint8 arrays."""

import gzip
import math
import os
import pathlib
import zlib

import numpy as np

from psaq_jax import files
from psaq_jax.errors import InputError

MOST_AXES = 3


def read_split(folder: str | pathlib.Path, split: str, side: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """(images uint8 [n, side, side], labels uint8 [n]) of FOLDER/SPLIT-images-idx3-ubyte and its labels, or of
    these names with .gz.

    Raises:
      InputError: as `read_idx`; images of another size, no image, another number of labels, a label beyond the classes.
    """
    images = read_idx(_found(folder, f"{split}-images-idx3-ubyte"))
    labels = read_idx(_found(folder, f"{split}-labels-idx1-ubyte"))
    where, expected = f"{folder}: {split}", f"[n, {side}, {side}]"
    if images.ndim != 3 or not len(images) or images.shape[1:] != (side, side):
        raise InputError(f"{where} has images of shape {list(images.shape)}, expected {expected}; give others")
    if labels.shape != images.shape[:1] or labels.max() >= classes:
        found = f"labels of shape {list(labels.shape)} up to {labels.max(initial=0)} for {len(images)} images"
        raise InputError(f"{where} has {found}, expected one below {classes} for each; give others")
    return images, labels


def _found(folder: str | pathlib.Path, name: str) -> pathlib.Path:
    plain = pathlib.Path(os.path.expanduser(folder)) / name
    return plain if os.path.lexists(plain) else plain.with_name(f"{name}.gz")


def read_idx(path: str | pathlib.Path) -> np.ndarray:
    """Reads one idx file of unsigned bytes, such as train-images-idx3-ubyte.gz -> uint8 [60000, 28, 28].

    Raises:
      InputError: the file is missing, not idx, of another element type, or shorter than its header says.
    """
    path = pathlib.Path(path)
    try:
        files.check_regular(path)
        raw = path.read_bytes()
        if path.suffix == ".gz":
            raw = gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        expected = "expected an idx file of Fashion-MNIST, gzipped or not; give the folder of its four files"
        raise InputError(f"{path}: cannot be read ({reason}); {expected}") from None
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08":
        raise InputError(
            f"{path}: starts with {raw[:4].hex() or 'nothing'}, expected an idx file of unsigned bytes (000008..)"
        )
    if len(raw) < 4 + 4 * raw[3]:
        raise InputError(f"{path}: ends inside its header, expected {raw[3]} axes; download it again")
    shape = np.frombuffer(raw, ">u4", count=raw[3], offset=4).tolist()
    values = np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3])
    if len(shape) > MOST_AXES or values.size != math.prod(shape):
        found = f"{len(shape)} axes" if len(shape) > MOST_AXES else shape
        raise InputError(f"{path}: holds {values.size} bytes, its header says {found}; download it again")
    return values.reshape(shape)
