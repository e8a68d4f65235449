"""Folders of image files: order, class numbers, labels files, broken files."""

import errno
import json
import os

import numpy as np
import pytest
from PIL import Image

from psaq_jax import results
from psaq_jax.data import UNLABELLED, load_dataset
from psaq_jax.errors import InputError
from psaq_jax.models.images import to_rgb
from psaq_jax.models.preprocessing import Preprocessing

PREPROCESSING = Preprocessing((8, 8), (0.0,) * 3, (1.0,) * 3, rescale_factor=1.0)


def save(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (value,) * 3).save(path)


@pytest.fixture
def tree(tmp_path):
    """Three classes, made in another order than they sort in; the grey value tells the image."""
    for name, value in {
        "dog/b.png": 3, "dog/a.PNG": 2, "cat/10.png": 0, "cat/9.png": 1,
        "emu/deep/er/x.bmp": 4, "emu/z.png": 5,
    }.items():  # fmt: skip
        save(tmp_path / name, value)
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    return tmp_path


def read(dataset):
    batch = next(dataset.batches(PREPROCESSING, len(dataset)))
    return batch.pixels[:, 0, 0, 0].astype(int).tolist(), batch.labels.tolist()


def test_order_and_labels_are_those_of_torchvision(tree):
    dataset = load_dataset(f"folder:{tree}")
    assert dataset.class_names == ("cat", "dog", "emu")
    # ImageFolder sorts the walked folders, then names: emu's own files come before those below it.
    assert read(dataset) == ([0, 1, 2, 3, 5, 4], [0, 0, 1, 1, 2, 2])
    assert dataset.train is None and dataset.labelled


def test_what_is_left_out_is_told_and_hidden_files_are_no_images(tree, caplog):
    """macOS leaves ._photo.jpg beside photo.jpg on other file systems."""
    load_dataset(f"folder:{tree}")
    assert not caplog.text
    for name in ("cat/._9.png", ".hidden.png"):
        (tree / name).write_bytes(b"\0\5\x16\7")
    save(tree / "loose.png")
    (tree / "fox").mkdir()
    dataset = load_dataset(f"folder:{tree}")
    assert dataset.class_names == ("cat", "dog", "emu", "fox") and len(dataset) == 6
    assert "found no image of class 'fox'" in caplog.text
    assert "images beside the class folders have no class: 1 left out" in caplog.text


def test_links_are_followed_but_not_in_circles(tree, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    save(elsewhere / "y.png", 6)
    (tree / "emu" / "more").symlink_to(elsewhere)
    (tree / "cat" / "again").symlink_to(tree / "cat")
    (tree / "dog" / "all").symlink_to(tree)
    (tree / "dog" / "nowhere").symlink_to(tree / "nowhere")
    assert read(load_dataset(f"folder:{tree}")) == ([0, 1, 2, 3, 5, 4, 6], [0, 0, 1, 1, 2, 2, 2])
    (tree / "dog" / "all").unlink()
    (elsewhere / "back").symlink_to(tree / "emu")
    (tree / "cat" / "more").symlink_to(elsewhere)
    images = [0, 1, 6, 5, 4, 2, 3, 5, 4, 6]
    assert read(load_dataset(f"folder:{tree}")) == (images, [0] * 5 + [1] * 2 + [2] * 3)


def test_what_the_system_refuses_is_named(tree, monkeypatch):
    with pytest.raises(InputError, match="x: cannot be read .File name too long"):
        load_dataset(f"folder:{'x' * 5000}")
    scandir = os.scandir

    def refuse(path):
        if os.path.basename(path) == "dog":
            raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)  # the superuser may read every folder
    with pytest.raises(InputError, match="dog: cannot be read .Permission denied"):
        load_dataset(f"folder:{tree}")
    monkeypatch.undo()
    monkeypatch.setattr(Image, "open", lambda path: refuse("dog"))
    with pytest.raises(InputError, match=r"png: cannot be read \(Permission denied\); correct who may read it"):
        next(load_dataset(f"folder:{tree}").batches(PREPROCESSING, 4))


@pytest.mark.parametrize(
    "content, names",
    {
        "list": (["emu", "dog", "gnu", "cat"], ("emu", "dog", "gnu", "cat")),
        "ImageNet's": (
            {"0": ["emu", "Emu"], "1": ["dog", "Dog"], "2": ["gnu", "Gnu"], "3": ["cat", "Cat"]},
            ("Emu", "Dog", "Gnu", "Cat"),
        ),
    }.values(),
)
def test_class_index_gives_the_numbers(tree, tmp_path_factory, content, names):
    path = tmp_path_factory.mktemp("index") / "index.json"
    path.write_text(json.dumps(content))
    dataset = load_dataset(f"folder:{tree}", class_index=str(path))
    assert dataset.class_names == names
    assert read(dataset) == ([0, 1, 2, 3, 5, 4], [3, 3, 1, 1, 0, 0])


@pytest.mark.parametrize(
    "content, expected",
    {
        "lacks a folder": ('["emu", "dog"]', "found the folder 'cat'"),
        "not json": ("emu dog", "cannot be read as JSON"),
        "gap": ('{"0": ["emu", "Emu"], "2": ["dog", "Dog"]}', "numbered without gaps"),
        "twice": ('["emu", "emu"]', "different folder names"),
        "numbers": ("[1, 2]", "JSON list"),
        "empty": ("[]", "JSON list"),
        "lists": ('[[["emu"], "Emu"]]', "JSON list"),
        "objects": ('[[{}, "Emu"]]', "JSON list"),
        "deep": ("[" * 100_000, "cannot be read as JSON"),
    }.values(),
)
def test_bad_class_index(tree, tmp_path_factory, content, expected):
    path = tmp_path_factory.mktemp("index") / "index.json"
    path.write_text(content)
    with pytest.raises(InputError, match=expected):
        load_dataset(f"folder:{tree}", class_index=str(path))


@pytest.fixture
def flat(tmp_path):
    folder = tmp_path / "flat"
    for value, name in enumerate(("ILSVRC_01.png", "ILSVRC_02.png", "ILSVRC_03.png")):
        save(folder / name, value)
    return folder


@pytest.mark.parametrize(
    "text, labels",
    {
        "ground truth": ("7\n0\n5\n", [7, 0, 5]),
        "with a byte-order mark": ("\ufeff7\n0\n5\n", [7, 0, 5]),
        "by name, any order": ("ILSVRC_03.png 5\nILSVRC_01.png 7\n\nILSVRC_02.png 0\n", [7, 0, 5]),
    }.values(),
)
def test_flat_folder_with_labels(flat, tmp_path, text, labels):
    (tmp_path / "labels.txt").write_text(text)
    dataset = load_dataset(f"folder:{flat}", labels_file=str(tmp_path / "labels.txt"))
    assert read(dataset) == ([0, 1, 2], labels)
    assert dataset.class_names is None


def test_names_in_a_labels_file_may_hold_spaces(tmp_path):
    save(tmp_path / "flat" / "a b.png", 0)
    (tmp_path / "labels.txt").write_text("a b.png 3\n")
    assert read(load_dataset(f"folder:{tmp_path / 'flat'}", labels_file=str(tmp_path / "labels.txt"))) == ([0], [3])


@pytest.mark.parametrize(
    "text, expected",
    {
        "too few": ("1\n2\n", "found 2 labels, expected 3"),
        "none": ("", "found 0 labels"),
        "not a number": ("1\ncat\n2\n", "line 2: found 'cat'"),
        "negative": ("1\n-1\n2\n", "line 2: found '-1'"),
        "no label behind a name": ("1\na 2 b\n2\n", "line 2: found 'a 2 b'"),
        "a long number": (f"1\n{'9' * 5000}\n2\n", "line 2: found '999"),
        "another name": ("a.png 1\nILSVRC_02.png 1\nILSVRC_03.png 1\n", "no label for ILSVRC_01.png"),
    }.values(),
)
def test_bad_labels_file(flat, tmp_path, text, expected):
    (tmp_path / "labels.txt").write_text(text)
    with pytest.raises(InputError, match=expected) as error:
        load_dataset(f"folder:{flat}", labels_file=str(tmp_path / "labels.txt"))
    assert "\n" not in str(error.value)


def test_labels_beyond_the_class_index(flat, tmp_path):
    (tmp_path / "labels.txt").write_text("0\n1\n2\n")
    (tmp_path / "index.json").write_text('["a", "b"]')
    with pytest.raises(InputError, match="line 3: found '2', expected .* from 0 to 1"):
        load_dataset(f"folder:{flat}", "stop", str(tmp_path / "index.json"), str(tmp_path / "labels.txt"))


def test_flat_folder_without_labels_is_unlabelled(flat):
    dataset = load_dataset(f"folder:{flat}")
    assert not dataset.labelled and read(dataset) == ([0, 1, 2], [UNLABELLED] * 3)


def test_a_folder_of_splits_is_evaluated_on_val_and_calibrated_on_train(tmp_path):
    for name in ("train/cat/a.png", "train/dog/b.png", "train/dog/c.png", "val/cat/d.png", "val/dog/e.png"):
        save(tmp_path / name)
    dataset = load_dataset(f"folder:{tmp_path}")
    assert (len(dataset), len(dataset.train)) == (2, 3)
    assert dataset.class_names == dataset.train.class_names == ("cat", "dog")
    save(tmp_path / "val" / "emu" / "f.png")
    with pytest.raises(InputError, match="other classes in train than in val"):
        load_dataset(f"folder:{tmp_path}")


@pytest.mark.parametrize("mode", ["L", "I;16", "RGBA", "CMYK"])
def test_a_plain_tiff_on_its_side_is_turned_upright(tmp_path, mode):
    """Pillow maps such a file into memory, and turned what it had mapped wrongly."""
    stored = Image.fromarray(np.arange(8 * 16, dtype=np.uint16).reshape(8, 16)) if mode == "I;16" else (
        Image.fromarray(np.arange(8 * 16, dtype=np.uint8).reshape(8, 16)).convert(mode))  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = 6
    stored.save(tmp_path / "x.tiff", exif=exif)
    found, _ = load_dataset(f"folder:{tmp_path}").source[0]
    expected = to_rgb(stored).transpose(Image.Transpose.ROTATE_270)
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


def test_files_of_classes_and_labels_may_be_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save(tmp_path / "flat" / "a.png")
    (tmp_path / "labels.txt").write_text("1\n")
    (tmp_path / "classes.json").write_text('["cat", "dog"]')
    dataset = load_dataset("folder:~/flat", class_index="~/classes.json", labels_file="~/labels.txt")
    assert dataset.class_names == ("cat", "dog") and dataset.labels.tolist() == [1]


def test_hidden_folders_are_no_classes(tmp_path):
    hidden = ("val/.ipynb_checkpoints/b.png", ".cache/c.png", "val/cat/.ipynb_checkpoints/d.png")
    for name in ("train/cat/a.png", "val/cat/b.png", *hidden):
        save(tmp_path / name)
    dataset = load_dataset(f"folder:{tmp_path}")
    assert dataset.class_names == ("cat",) and len(dataset) == 1 == len(dataset.train)


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "palette cut", "tiff", "pipe"])
def test_a_broken_image_stops_or_is_skipped(tree, damage):
    path = tree / "dog" / "b.png"
    content = path.read_bytes()
    if damage == "palette cut":
        Image.new("P", (8, 8)).save(path)
        content = path.read_bytes()
        path.write_bytes(content[:60])
    elif damage == "tiff":  # the places of its strips become a text
        Image.new("RGB", (8, 8)).save(path, "tiff")
        path.write_bytes(path.read_bytes().replace(b"\x11\x01\x04\x00", b"\x11\x01\x02\x00"))
    elif damage == "pipe":
        path.unlink()
        os.mkfifo(path)
    else:
        path.write_bytes({"truncated": content[: len(content) // 2], "text": b"<html>", "empty": b""}[damage])
    with pytest.raises(InputError, match=r"b\.png: cannot be decoded") as error:
        list(load_dataset(f"folder:{tree}").batches(PREPROCESSING, 4))
    assert "\n" not in str(error.value)

    dataset = load_dataset(f"folder:{tree}", errors="skip")
    batches = list(dataset.batches(PREPROCESSING, 4))
    assert [b.mask.tolist() for b in batches] == [[True, True, True, False], [True, True, False, False]]
    assert batches[0].pixels[3].max() == 0 and batches[0].labels[3] == 0
    list(dataset.batches(PREPROCESSING, 4))
    assert len(dataset.skipped) == 1 and "b.png" in dataset.skipped[0]
    assert dataset.sample(PREPROCESSING, 5, seed=1).shape == (5, 8, 8, 3)
    with pytest.raises(InputError, match="found 5 sound images, expected 6"):
        dataset.sample(PREPROCESSING, 6, seed=1)


def test_results_name_skipped_images_of_both_splits(tmp_path):
    for name in ("train/a.png", "train/b.png", "train/c.png", "val/d.png"):
        save(tmp_path / name)
    for name in ("train/b.png", "val/d.png"):
        (tmp_path / name).write_bytes(b"")
    dataset = load_dataset(f"folder:{tmp_path}", errors="skip")
    dataset.for_calibration.sample(PREPROCESSING, 4, seed=1, fewer=True)
    list(dataset.batches(PREPROCESSING, 4))
    skipped = results.skipped(dataset)
    assert len(skipped) == 2 and "d.png" in skipped[0] and "b.png" in skipped[1]
    assert results.skipped(None) == []


def test_jpeg_modes_and_names_with_spaces(tmp_path):
    (tmp_path / "a class").mkdir()
    Image.new("CMYK", (8, 8), (0, 0, 0, 0)).save(tmp_path / "a class" / "c m y k.jpeg")
    Image.new("L", (8, 8), 255).save(tmp_path / "a class" / "grey.jpg")
    batch = next(load_dataset(f"folder:{tmp_path}").batches(PREPROCESSING, 2))
    np.testing.assert_array_equal(batch.pixels, 255)


def test_nothing_there(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        load_dataset(f"folder:{tmp_path / 'absent'}")
    with pytest.raises(InputError, match="no folders and no images"):
        load_dataset(f"folder:{tmp_path}")
    (tmp_path / "cat").mkdir()
    with pytest.raises(InputError, match="found no images"):
        load_dataset(f"folder:{tmp_path}")
