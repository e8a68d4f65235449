"""The idx format, written here byte by byte."""

import gzip
import os

import numpy as np
import pytest

from psaq_jax.data.idx import read_idx, read_split
from psaq_jax.errors import InputError

HEADER = b"\x00\x00\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (2, 3, 4))
CONTENT = HEADER + bytes(range(24))


@pytest.mark.parametrize("name", ["x-idx3-ubyte", "x-idx3-ubyte.gz"])
def test_plain_and_gzipped(tmp_path, name):
    (tmp_path / name).write_bytes(gzip.compress(CONTENT, mtime=0) if name.endswith(".gz") else CONTENT)
    np.testing.assert_array_equal(read_idx(tmp_path / name), np.arange(24, dtype=np.uint8).reshape(2, 3, 4))


@pytest.mark.parametrize(
    "name, content, expected",
    {
        "short": ("x", CONTENT[:-1], r"holds 23 bytes, its header says \[2, 3, 4\]"),
        "header cut": ("x", HEADER[:9], "ends inside its header"),
        "another type": ("x", b"\x00\x00\x0d" + CONTENT[3:], "starts with 00000d03"),
        "empty": ("x", b"", "starts with nothing, expected"),
        "axes whose product wraps": ("x", HEADER[:4] + b"\x80\0\0\0" * 2 + b"\0\0\0\4", r"holds 0 bytes, .* \[2147"),
        "a hundred axes": ("x", b"\0\0\x08\x64" + b"\0\0\0\1" * 100 + b"\0", "holds 1 bytes, its header says 100 axes"),
        "not gzip": ("x.gz", CONTENT, "cannot be read"),
        "gzip cut": ("x.gz", gzip.compress(CONTENT, mtime=0)[:20], "cannot be read"),
        "gzip damaged": ("x.gz", gzip.compress(CONTENT, mtime=0)[:12] + b"\xff" * 30, "cannot be read"),
    }.values(),
)
def test_damaged_files(tmp_path, name, content, expected):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=expected):
        read_idx(tmp_path / name)
    with pytest.raises(InputError, match="cannot be read"):
        read_idx(tmp_path / "absent")


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "train-images-idx3-ubyte")
    with pytest.raises(InputError, match=r"train-images-idx3-ubyte: cannot be read \(not a regular file\)"):
        read_split(tmp_path, "train", 3, 2)
    with pytest.raises(InputError, match=r"cannot be read \(File name too long\)"):
        read_split("x" * 300, "train", 3, 2)


def test_a_split_without_axes_is_refused(tmp_path):
    for name in ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
        (tmp_path / name).write_bytes(b"\0\0\x08\0\5")
    with pytest.raises(InputError, match=r"t10k has images of shape \[\], expected \[n, 3, 3\]"):
        read_split(tmp_path, "t10k", 3, 10)


@pytest.mark.parametrize("end", ["", ".gz"])
def test_a_split_of_plain_or_gzipped_files(tmp_path, end):
    images = HEADER[:4] + b"".join(n.to_bytes(4, "big") for n in (2, 3, 3)) + bytes(18)
    labels = b"\0\0\x08\1\0\0\0\2\0\1"
    for name, content in {"t10k-images-idx3-ubyte": images, "t10k-labels-idx1-ubyte": labels}.items():
        (tmp_path / f"{name}{end}").write_bytes(gzip.compress(content) if end else content)
    images, labels = read_split(tmp_path, "t10k", 3, 2)
    assert images.shape == (2, 3, 3) and labels.tolist() == [0, 1]
    with pytest.raises(InputError, match="none/train-images.*No such file or directory.*; give the folder"):
        read_split(tmp_path / "none", "train", 3, 2)


@pytest.mark.parametrize("labels, found", [
    (b"\0\2", r"labels of shape \[2\] up to 2 for 2 images, expected one below 2 for each"),
    (b"\0\1\0", r"labels of shape \[3\] up to 1 for 2 images"), (b"\0", r"labels of shape \[1\] up to 0 for 2 images"),
])  # fmt: skip
def test_labels_that_do_not_fit_the_images(tmp_path, labels, found):
    (tmp_path / "t-images-idx3-ubyte").write_bytes(HEADER[:4] + b"\0\0\0\2" + b"\0\0\0\3" * 2 + bytes(18))
    (tmp_path / "t-labels-idx1-ubyte").write_bytes(b"\0\0\x08\1\0\0\0" + bytes([len(labels)]) + labels)
    with pytest.raises(InputError, match=f"t has {found}"):
        read_split(tmp_path, "t", 3, 2)
    with pytest.raises(InputError, match=r"t has images of shape \[2, 3, 3\], expected \[n, 4, 4\]"):
        read_split(tmp_path, "t", 4, 2)
