"""Batches: every image once, in order, padded and masked, whatever the batch size and the workers."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from psaq_jax.data import ArraySource, Dataset, load_dataset
from psaq_jax.errors import InputError
from psaq_jax.models.preprocessing import Preprocessing
from tests import jobs

PREPROCESSING = Preprocessing((4, 4), (0.25,) * 3, (0.5,) * 3)


def numbered(n):
    """n images whose first pixel is their number."""
    images = np.zeros((n, 4, 4, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(n)
    return Dataset(ArraySource(images, np.arange(n) % 7))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(1, 50))
def test_every_image_once_in_order(n, batch_size):
    seen = []
    for batch in numbered(n).batches(PREPROCESSING, batch_size):
        assert batch.pixels.shape == (batch_size, 4, 4, 3) and batch.pixels.dtype == np.float32
        assert batch.labels.shape == batch.mask.shape == (batch_size,)
        assert batch.labels.dtype == np.int32 and batch.mask.dtype == bool
        numbers = PREPROCESSING.denormalize(batch.pixels)[batch.mask, 0, 0, 0]
        np.testing.assert_array_equal(batch.labels[batch.mask], numbers % 7)
        assert not batch.pixels[~batch.mask].any() and not batch.labels[~batch.mask].any()
        seen += numbers.tolist()
    assert seen == list(range(n))


def test_the_identity_changes_with_the_contents_and_reads_no_image(tmp_path, monkeypatch):
    for name in ("cat/a.png", "dog/b.png"):
        (tmp_path / name).parent.mkdir()
        Image.new("RGB", (9, 9)).save(tmp_path / name)
    monkeypatch.setattr("psaq_jax.data.folder.decode", lambda path: pytest.fail("an image was read"))
    spec = f"folder:{tmp_path}"
    before = load_dataset(spec).identity()
    assert before == load_dataset(spec).identity() and before["examples"] == 2
    Image.new("RGB", (99, 99)).save(tmp_path / "cat" / "a.png")
    larger = load_dataset(spec).identity()
    (tmp_path / "dog" / "b.png").rename(tmp_path / "cat" / "b.png")
    assert len({x["sha256"] for x in (before, larger, load_dataset(spec).identity())}) == 3
    bundled = load_dataset("bundled:fashion_mnist").identity()
    assert (bundled["examples"], bundled["train"]["examples"]) == (10000, 4096)
    assert numbered(3).identity() == numbered(3).identity() != numbered(4).identity()


def test_the_identity_changes_with_a_pixel_a_label_and_a_name(tmp_path):
    images, labels = np.zeros((3, 4, 4, 3), np.uint8), np.arange(3)
    others, found = images.copy(), set()
    others[1, 2, 3, 0] = 1
    for pixels, numbers, names in (
        (images, labels, None), (others, labels, None), (images, labels[::-1], None), (images, labels, ("a", "b", "c")),
        (images, labels, ("a", "c", "b")),
    ):  # fmt: skip
        source = ArraySource(pixels, numbers)
        source.class_names = names
        found.add(Dataset(source).identity()["sha256"])
    for name, pixels in (("x", images), ("y", others)):
        np.savez(tmp_path / f"{name}.npz", images=pixels)  # files of one size
        found.add(load_dataset(f"npz:{tmp_path / name}.npz").identity()["sha256"])
    assert len(found) == 7


def test_workers_change_nothing(tmp_path):
    np.savez(tmp_path / "x.npz", images=np.random.default_rng(0).integers(0, 256, (11, 9, 9, 1), np.uint8))
    dataset = load_dataset(f"npz:{tmp_path / 'x.npz'}")
    alone = list(dataset.batches(PREPROCESSING, 3))
    together = list(dataset.batches(PREPROCESSING, 3, workers=2))
    assert len(alone) == len(together) == 4
    for a, b in zip(alone, together, strict=True):
        for left, right in zip(a, b, strict=True):
            np.testing.assert_array_equal(left, right)
            assert left.dtype == right.dtype


def test_workers_report_broken_images(tmp_path):
    for i in range(5):
        (tmp_path / "cat").mkdir(exist_ok=True)
        Image.new("L", (4, 4), i).save(tmp_path / "cat" / f"{i}.png")
    (tmp_path / "cat" / "2.png").write_bytes(b"broken")
    dataset = load_dataset(f"folder:{tmp_path}", errors="skip")
    masks = [batch.mask.tolist() for batch in dataset.batches(PREPROCESSING, 2, workers=1)]
    assert masks == [[True, True], [False, True], [True, False]]
    assert [message.split(": ")[0] for message in dataset.skipped] == [str(tmp_path / "cat" / "2.png")]
    with pytest.raises(InputError, match=r"2\.png: cannot be decoded"):
        list(load_dataset(f"folder:{tmp_path}").batches(PREPROCESSING, 2, workers=1))


@pytest.mark.parametrize("broken", [False, True])
def test_workers_leave_no_shared_memory_to_clean_up(tmp_path, broken):
    """Python would say so on the console when the process ends."""
    for i in range(6):
        Image.new("L", (4, 4), i).save(tmp_path / f"{i}.png")
    if broken:
        (tmp_path / "3.png").write_bytes(b"broken")
    script = tmp_path / "script.py"
    script.write_text(f"""
from grain.multiprocessing import SharedMemoryArray
from psaq_jax.data import load_dataset
from psaq_jax.models.preprocessing import Preprocessing

if __name__ == "__main__":
    preprocessing = Preprocessing((4, 4), (0.0,) * 3, (1.0,) * 3)
    try:
        print(len(list(load_dataset("folder:{tmp_path}").batches(preprocessing, 2, 2))))
    finally:
        SharedMemoryArray._del_thread_pool.apply(int)  # behind what grain's thread is about to unlink
""")
    done = subprocess.run([sys.executable, script], timeout=600, **jobs.settings())
    assert done.returncode == broken and "shared_memory" not in done.stderr, done.stderr
    assert "cannot be decoded" in done.stderr if broken else done.stdout == "3\n"


def test_a_skipped_image_whose_name_begins_with_another_name_is_itself(tmp_path):
    for name in ("x.png", "x.png: y.png"):
        (tmp_path / "cat").mkdir(exist_ok=True)
        Image.new("L", (4, 4)).save(tmp_path / "cat" / name, "png")
    (tmp_path / "cat" / "x.png: y.png").write_bytes(b"broken")
    dataset = load_dataset(f"folder:{tmp_path}", errors="skip")
    list(dataset.batches(PREPROCESSING, 2))
    assert dataset.names() == [str(tmp_path / "cat" / "x.png")]


def test_a_name_takes_no_part_in_what_the_console_does(tmp_path, caplog):
    (tmp_path / "a\033[31m\007.png").write_bytes(b"broken")
    Image.new("L", (4, 4)).save(tmp_path / "b.png")
    list(load_dataset(f"folder:{tmp_path}", errors="skip").batches(PREPROCESSING, 2))
    assert "skipped: " in caplog.text and "\033" not in caplog.text and "\007" not in caplog.text


def test_sample_draws_without_replacement_and_repeats():
    dataset = numbered(30)
    first, again, other = (dataset.sample(PREPROCESSING, 12, seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    numbers = PREPROCESSING.denormalize(first)[:, 0, 0, 0].tolist()
    assert len(set(numbers)) == 12 and numbers != sorted(numbers)
    drawn = PREPROCESSING.denormalize(dataset.sample(PREPROCESSING, 5, 3))[:, 0, 0, 0].tolist()
    assert drawn == numbers[:5], "the first of the same order"
    assert sorted(PREPROCESSING.denormalize(dataset.sample(PREPROCESSING, 30, 0))[:, 0, 0, 0]) == list(range(30))


def test_sample_takes_what_is_sound_where_fewer_will_do():
    class Broken(ArraySource):
        def __getitem__(self, index):
            if index == 2:
                raise InputError("broken")
            return super().__getitem__(index)

    dataset = Dataset(Broken(numbered(6).source.images), errors="skip")
    assert len(dataset.sample(PREPROCESSING, 6, 0, fewer=True)) == 5
    with pytest.raises(InputError, match="found 5 sound images, expected 6"):
        dataset.sample(PREPROCESSING, 6, 0)


@pytest.mark.parametrize("n", [0, 31])
def test_sample_refuses_more_than_there_is(n):
    with pytest.raises(InputError, match="found 30 images"):
        numbered(30).sample(PREPROCESSING, n, 0)


@pytest.mark.parametrize(
    "spec", ["", "fashion_mnist", "s3:bucket", "folder:", "npz", "bundled:mnist", "bundled:fashion_mnist:val"]
)
def test_unknown_specs(spec):
    with pytest.raises(InputError, match="found .*, expected .*; ") as error:
        load_dataset(spec)
    assert "\n" not in str(error.value)


def test_bad_settings():
    with pytest.raises(InputError, match='errors: found \'ignore\', expected "stop" or "skip"'):
        Dataset(numbered(3).source, errors="ignore")
    for values, message in ((0, 0), "batch_size is 0"), ((3, "a"), "workers is 'a'"), ((3, -1), "workers is -1"):
        with pytest.raises(InputError, match=f"{message}, expected a whole number of at least"):
            next(numbered(3).batches(PREPROCESSING, *values))
    assert next(numbered(3).batches(PREPROCESSING, np.int64(3), np.int64(0))).mask.all()
    with pytest.raises(InputError, match="with folder:DIR only"):
        load_dataset("bundled:fashion_mnist", class_index="x.json")


def test_images_that_cannot_be_resized_are_named():
    keep = Preprocessing((5, 5), (0.5,) * 3, (0.5,) * 3, resize="none")
    with pytest.raises(InputError, match="arrays, image 0: images: found 4x4 pixels"):
        next(numbered(3).batches(keep, 2))


def test_the_place_of_an_image_that_cannot_be_fitted_is_empty():
    class Odd(ArraySource):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return image[:3] if index == 1 else image, label

    keep = Preprocessing((4, 4), (0.5,) * 3, (0.5,) * 3, resize="none")
    (batch,) = Dataset(Odd(numbered(3).source.images, np.array([4, 5, 6])), errors="skip").batches(keep, 4)
    assert (batch.labels.tolist(), batch.mask.tolist()) == ([4, 0, 6, 0], [True, False, True, False])
    assert not batch.pixels[1::2].any() and batch.pixels[::2].any((1, 2, 3)).all()
