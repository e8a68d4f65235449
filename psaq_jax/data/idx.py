"""The idx format of MNIST and Fashion-MNIST (yann.lecun.com/exdb/mnist), gzipped or not: uint8 arrays."""

import gzip
import pathlib
import zlib

import numpy as np

from psaq_jax.errors import InputError


def read_idx(path: str | pathlib.Path) -> np.ndarray:
    """Reads one idx file of unsigned bytes, such as train-images-idx3-ubyte.gz -> uint8 [60000, 28, 28].

    Raises:
      InputError: the file is missing, not idx, of another element type, or shorter than its header says.
    """
    path = pathlib.Path(path)
    try:
        raw = path.read_bytes()
        if path.suffix == ".gz":
            raw = gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"{path}: cannot be read ({error}); expected a (gzipped) idx file of Fashion-MNIST"
        ) from None
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08":
        raise InputError(
            f"{path}: starts with {raw[:4].hex()}, expected an idx file of unsigned bytes (000008..)"
        )
    if len(raw) < 4 + 4 * raw[3]:
        raise InputError(f"{path}: ends inside its header, expected {raw[3]} axes; download it again")
    shape = np.frombuffer(raw, ">u4", count=raw[3], offset=4).astype(int)
    values = np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3])
    if values.size != np.prod(shape):
        raise InputError(
            f"{path}: holds {values.size} bytes, its header says {shape.tolist()}; download it again"
        )
    return values.reshape(shape)
