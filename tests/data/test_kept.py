"""A data set that is decoded once: the same batches, whatever the disk does."""

import dataclasses
import errno
import os
import shutil
import tempfile
import types

import numpy as np
import pytest
from PIL import Image

from psaq_jax.data import KeptDataset, load_dataset
from psaq_jax.errors import InputError, TryAgain
from psaq_jax.models.preprocessing import Preprocessing

PREPROCESSING = Preprocessing((8, 8), (0.5,) * 3, (0.5,) * 3)


@pytest.fixture
def tree(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (7, 12, 10, 3), np.uint8)
    for i, image in enumerate(pixels):
        path = tmp_path / "data" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    (tmp_path / "work").mkdir()
    return tmp_path


def opened(tree, **options):
    dataset = load_dataset(f"folder:{tree / 'data'}", **options)
    return dataset, KeptDataset(dataset, tree / "work")


def check_same(dataset, kept, batch_size=3, preprocessing=PREPROCESSING, workers=0):
    batches = zip(
        dataset.batches(preprocessing, batch_size), kept.batches(preprocessing, batch_size, workers), strict=True
    )
    for expected, found in batches:
        for a, b in zip(expected, found, strict=True):
            np.testing.assert_array_equal(a, b)


def count_reads(monkeypatch, source):
    reads, plain = [], type(source).__getitem__
    monkeypatch.setattr(type(source), "__getitem__", lambda self, i: reads.append(i) or plain(self, i))
    return reads


def test_later_passes_decode_nothing_and_are_the_same(tree, monkeypatch):
    dataset, kept = opened(tree)
    check_same(dataset, kept)
    expected = list(dataset.batches(PREPROCESSING, 4))
    reads = count_reads(monkeypatch, dataset.source)
    found = list(kept.batches(PREPROCESSING, 4))
    assert not reads and not os.listdir(tree / "work"), "the file has no name"
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_array_equal(a.pixels, b.pixels)
        np.testing.assert_array_equal(a.labels, b.labels)
    assert kept.labelled and kept.class_names == ("a", "b") and kept.identity() == dataset.identity()


def test_a_read_may_be_short(tree, monkeypatch):
    dataset, kept = opened(tree)
    list(kept.batches(PREPROCESSING, 3))
    read = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, into, at: read(file, [into[0][:100]], at))
    check_same(dataset, kept)


@pytest.mark.parametrize("changes", [{"image_size": (6, 6), "resize_size": (6, 6)}, {"interpolation": "nearest"}])
def test_another_preprocessing_decodes_anew(tree, monkeypatch, changes):
    dataset, kept = opened(tree)
    list(kept.batches(PREPROCESSING, 3))
    other = dataclasses.replace(PREPROCESSING, **changes)
    reads = count_reads(monkeypatch, dataset.source)
    check_same(dataset, kept, preprocessing=other)
    assert len(reads) == 14
    check_same(dataset, kept, preprocessing=other)
    assert len(reads) == 21


def test_a_pass_that_was_left_is_not_kept(tree):
    dataset, kept = opened(tree)
    next(kept.batches(PREPROCESSING, 3))
    check_same(dataset, kept)
    check_same(dataset, kept)


@pytest.mark.parametrize("is_kept", [False, True])
def test_parts_do_not_tell_again_what_the_whole_has_told(tree, caplog, is_kept):
    """One process of several samples images to calibrate on, and then reads its share of all."""
    (tree / "data" / "a" / "2.png").write_bytes(b"broken")
    dataset = opened(tree, errors="skip")[is_kept]
    dataset.sample(PREPROCESSING, 7, seed=0, fewer=True)
    part = dataset.part(range(4))
    list(part.batches(PREPROCESSING, 3))
    assert part.skipped == dataset.skipped and caplog.text.count("skipped: ") == len(part.skipped) == 1


def test_broken_images_are_told_once_and_stay_left_out(tree, caplog):
    (tree / "data" / "a" / "2.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"2\.png: cannot be decoded"):
        list(opened(tree)[1].batches(PREPROCESSING, 3))
    dataset, kept = opened(tree, errors="skip")
    for _ in range(3):
        assert sum(batch.mask.sum() for batch in kept.batches(PREPROCESSING, 3)) == 6
    assert len(kept.skipped) == 1 and kept.skipped is dataset.skipped and caplog.text.count("skipped: ") == 1
    check_same(dataset, kept)


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_disk_without_room_is_no_error(tree, at, monkeypatch):
    """As it is opened, in the first batch, or in a later one."""
    dataset, kept = opened(tree)
    plain, full = tempfile.TemporaryFile, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    class Full:
        def __init__(self, file):
            self.file, self.left = file, at - 1

        def write(self, content):
            if not self.left:
                raise full
            self.left -= 1
            return self.file.write(content)

        def close(self):
            self.file.close()

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.close()

    def opens(**options):
        if not at:
            raise full
        return Full(plain(**options))

    monkeypatch.setattr(tempfile, "TemporaryFile", opens)
    check_same(dataset, kept)
    monkeypatch.undo()
    reads = count_reads(monkeypatch, dataset.source)
    check_same(dataset, kept)
    assert len(reads) == 14
    check_same(dataset, kept)
    assert len(reads) == 21, "and kept as soon as there is room"


def test_half_of_what_is_free_is_left_to_the_job(tree, monkeypatch):
    dataset, kept = opened(tree)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=2 * 7 * 8 * 8 * 3 - 1))
    check_same(dataset, kept)
    reads = count_reads(monkeypatch, dataset.source)
    check_same(dataset, kept)
    assert len(reads) == 14


def test_what_cannot_be_read_back_is_try_again(tree, monkeypatch):
    _, kept = opened(tree)
    list(kept.batches(PREPROCESSING, 3))
    os.ftruncate(kept._kept.descriptor, 5 * 8 * 8 * 3)
    with pytest.raises(TryAgain, match=r"cannot be read \(it is cut short\)"):
        list(kept.batches(PREPROCESSING, 3))


def test_a_share_of_it_is_kept_too(tree, monkeypatch):
    """As each of several processes has one."""
    dataset, kept = opened(tree)
    for indices in (range(3), range(3, 7)):
        check_same(dataset.part(indices), kept.part(indices))
    reads = count_reads(monkeypatch, dataset.source)
    for indices in (range(3), range(3, 7)):
        check_same(dataset.part(indices), kept.part(indices))
    assert len(reads) == 7 and kept.part(range(3)).name == dataset.name


def test_files_are_closed_with_their_data_sets(tree):
    dataset, kept = opened(tree)
    before = len(os.listdir("/proc/self/fd"))
    list(kept.batches(PREPROCESSING, 3))
    list(kept.batches(Preprocessing((6, 6), (0.0,) * 3, (1.0,) * 3), 3))
    assert len(os.listdir("/proc/self/fd")) == before + 1
    del kept
    assert len(os.listdir("/proc/self/fd")) == before


def test_with_worker_processes(tree):
    pytest.importorskip("grain", reason="grain (extra data) is not installed")
    dataset, kept = opened(tree)
    for workers in (1, 1):
        check_same(dataset, kept, workers=workers)
