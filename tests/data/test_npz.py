"""npz files and arrays in memory."""

import errno
import functools
import os
import pickle
import zipfile

import numpy as np
import pytest

from psaq_jax.data import UNLABELLED, load_dataset
from psaq_jax.data.npz import NpzSource
from psaq_jax.errors import InputError
from psaq_jax.models.preprocessing import Preprocessing

PREPROCESSING = Preprocessing((6, 5), (0.0,) * 3, (1.0,) * 3, rescale_factor=1.0)
IMAGES = np.random.default_rng(0).integers(0, 256, (7, 6, 5, 3), dtype=np.uint8)
LABELS = np.arange(7)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("channels", ["colour", "one", "none", "fortran"])
def test_images_come_back(tmp_path, save, channels):
    images = {
        "colour": IMAGES, "one": IMAGES[..., :1], "none": IMAGES[..., 0], "fortran": np.asfortranarray(IMAGES)
    }[channels]  # fmt: skip
    save(tmp_path / "x.npz", images=images, labels=LABELS.astype(np.uint8))
    dataset = load_dataset(f"npz:{tmp_path / 'x.npz'}")
    batch = next(dataset.batches(PREPROCESSING, 7))
    expected = IMAGES if channels in ("colour", "fortran") else np.repeat(IMAGES[..., :1], 3, -1)
    np.testing.assert_array_equal(batch.pixels, expected)
    np.testing.assert_array_equal(batch.labels, LABELS)
    assert dataset.class_names is None and dataset.train is None


def test_uncompressed_images_stay_on_disk_and_pickle_small(tmp_path):
    np.savez(tmp_path / "x.npz", labels=LABELS, images=IMAGES)
    source = NpzSource(tmp_path / "x.npz")
    assert isinstance(source.images, np.memmap)
    assert len(pickle.dumps(source)) < 400
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(source)).images, IMAGES)


def test_labels_are_optional(tmp_path):
    np.savez(tmp_path / "x.npz", images=IMAGES)
    dataset = load_dataset(f"npz:{tmp_path / 'x.npz'}")
    assert not dataset.labelled
    assert next(dataset.batches(PREPROCESSING, 7)).labels.tolist() == [UNLABELLED] * 7


@pytest.mark.parametrize(
    "arrays, expected",
    {
        "float images": ({"images": IMAGES / 255}, r"images: found float64 \[7, 6, 5, 3\]"),
        "nchw": ({"images": IMAGES.transpose(0, 3, 1, 2)}, r"images: found uint8 \[7, 3, 6, 5\]"),
        "no images": ({"images": IMAGES[:0], "labels": LABELS[:0]}, r"images: found uint8 \[0, 6, 5, 3\]"),
        "another name": ({"x": IMAGES, "y": LABELS}, "found x, y, expected `images`"),
        "counts": (
            {"images": IMAGES, "labels": LABELS[:6]},
            r"labels: found int64 \[6\], expected integers \[7\]",
        ),
        "float labels": ({"images": IMAGES, "labels": LABELS / 1}, "labels: found float64"),
        "negative label": ({"images": IMAGES, "labels": LABELS - 2}, "labels: found -2 at index 0"),
        "label beyond int32": (
            {"images": IMAGES, "labels": LABELS + 2**31 - 3},
            "labels: found 2147483648 at index 3",
        ),
        "one-hot": ({"images": IMAGES, "labels": np.eye(7, dtype=int)}, r"labels: found int64 \[7, 7\]"),
    }.values(),
)
def test_bad_contents_are_named(tmp_path, arrays, expected):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(InputError, match=rf"x\.npz: .*{expected}|x\.npz: {expected}") as error:
        load_dataset(f"npz:{tmp_path / 'x.npz'}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("member", ["images", "labels"])
def test_pickled_objects_are_never_loaded(tmp_path, member):
    arrays = {"images": IMAGES, "labels": LABELS} | {member: np.array([{}] * 7, object)}
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(InputError, match=r"x\.npz: cannot be read \(Object arrays cannot be loaded"):
        load_dataset(f"npz:{tmp_path / 'x.npz'}")


def test_a_file_that_nobody_may_read_is_not_called_damaged(tmp_path, monkeypatch):
    np.savez(tmp_path / "x.npz", images=IMAGES)

    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(zipfile, "ZipFile", refuse)  # the superuser may read every file
    with pytest.raises(InputError, match=r"x\.npz: cannot be read \(Permission denied\); correct the path, or who may"):
        load_dataset(f"npz:{tmp_path / 'x.npz'}")


@pytest.mark.parametrize("damage", ["absent", "text", "npy", "cut", "folder", "pipe", "flipped"])
def test_unreadable_files(tmp_path, damage):
    path = tmp_path / "x.npz"
    np.savez_compressed(path, images=IMAGES, labels=LABELS)
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[200] ^= 255
        path.write_bytes(content)
    elif damage == "npy":
        with path.open("wb") as file:
            np.save(file, IMAGES)
    elif damage in ("absent", "folder", "pipe"):
        path.unlink()
        if damage != "absent":
            (path.mkdir if damage == "folder" else functools.partial(os.mkfifo, path))()
    else:
        path.write_bytes(b"hello" if damage == "text" else content[:300])
    with pytest.raises(InputError, match=r"x\.npz: ") as error:
        load_dataset(f"npz:{path}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '|u1', 'fortran_order': False, 'shape': (7, 6, 5, 3",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999999999999999, 6, 5, 3)}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (9999999, 999999, 999, 3)}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (-7, 6, 5, 3)}",
        "{'descr': '|u1', 'fortran_order': False, 1: 2, 'shape': (7, 6, 5, 3)}",
        "{'descr': [('a', 'b', 'c', 'd')], 'fortran_order': False, 'shape': (7, 6, 5, 3)}",
        "(" * 5000,
    ],
    ids=["open", "beyond 64 bits", "terabytes", "negative", "key", "type", "deep"],
)
@pytest.mark.parametrize("member", ["images", "labels"])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_damaged_headers_inside(tmp_path, header, member, compression):
    with zipfile.ZipFile(tmp_path / "x.npz", "w", compression) as archive:
        for name, array in {"images": IMAGES, "labels": LABELS}.items():
            with archive.open(f"{name}.npy", "w") as file:
                if name == member:
                    file.write(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode())
                else:
                    np.lib.format.write_array(file, array)
    with pytest.raises(InputError, match=r"x\.npz: ") as error:
        load_dataset(f"npz:{tmp_path / 'x.npz'}")
    assert "\n" not in str(error.value)
