"""TFDS data sets in array_record, without TensorFlow; and the bundled one."""

import io
import sys

import numpy as np
import pytest
from PIL import Image

from psaq_jax.data import load_dataset, tfds
from psaq_jax.data.bundled import FASHION_MNIST
from psaq_jax.errors import InputError
from psaq_jax.models.preprocessing import Preprocessing

PREPROCESSING = Preprocessing((8, 8), (0.0,) * 3, (1.0,) * 3, rescale_factor=1.0)
NAMES = ("cat", "dog")


def encoded(value, mode):
    buffer = io.BytesIO()
    colour = {"L": value, "RGB": (value,) * 3, "CMYK": (0, 0, 0, 255 - value)}[mode]
    Image.new(mode, (8, 8), colour).save(buffer, "jpeg")
    return buffer.getvalue()


def prepare(directory, splits, suffix="array_record", feature=None):
    """A prepared data set: {split: [values]}, label = position modulo 2, modes in turn."""
    import tensorflow_datasets
    from array_record.python.array_record_module import ArrayRecordWriter

    kinds = tensorflow_datasets.features
    features = kinds.FeaturesDict(
        {"image": kinds.Image(encoding_format="jpeg"), "label": feature or kinds.ClassLabel(names=NAMES)}
    )
    directory.mkdir(parents=True)
    infos = []
    for split, values in splits.items():
        writer = ArrayRecordWriter(str(directory / f"toy-{split}.{suffix}-00000-of-00001"), "group_size:1")
        for i, value in enumerate(values):
            image = encoded(value, ("RGB", "L", "CMYK")[i % 3])
            writer.write(features.serialize_example({"image": image, "label": i % 2}))
        writer.close()
        infos.append(tensorflow_datasets.core.SplitInfo(name=split, shard_lengths=[len(values)], num_bytes=1))
    tensorflow_datasets.folder_dataset.write_metadata(
        data_dir=str(directory), features=features, split_infos=infos, check_data=False,
        filename_template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
    )  # fmt: skip


@pytest.fixture
def data_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    return tmp_path


def read(dataset):
    batch = next(dataset.batches(PREPROCESSING, len(dataset)))
    assert (batch.pixels == batch.pixels[:, :1, :1, :1]).all()
    return batch.pixels[:, 0, 0, 0].astype(int).tolist(), batch.labels.tolist()


def test_all_jpeg_modes_decode_and_slices_work(data_dir):
    prepare(data_dir / "toy" / "1.0.0", {"train": [5], "test": [0, 255, 128, 64]})
    dataset = load_dataset("tfds:toy:test")
    assert read(dataset) == ([0, 255, 128, 64], [0, 1, 0, 1])
    assert dataset.class_names == NAMES and len(dataset.train) == 1
    assert read(load_dataset("tfds:toy:test[:50%]")) == ([0, 255], [0, 1])
    assert read(load_dataset("tfds:toy:test[2:]+train")) == ([128, 64, 5], [0, 1, 0])


@pytest.mark.parametrize("split", ["train", "train[:50%]", "train[1:]+test", "test+train", "all"])
def test_a_split_that_is_evaluated_is_no_other_one_to_calibrate_on(data_dir, split):
    prepare(data_dir / "toy" / "1.0.0", {"train": [5, 6], "test": [0]})
    dataset = load_dataset(f"tfds:toy:{split}")
    assert dataset.train is None and dataset.for_calibration is dataset


def test_the_identity_is_that_of_the_split(data_dir):
    def identity(version, splits):
        prepare(data_dir / "toy" / version, splits)
        return load_dataset("tfds:toy:test").identity()

    images = list(range(0, 250, 10))
    before = identity("1.0.0", {"test": images})
    assert identity("2.0.0", {"test": images, "other": [5]}) == before
    assert identity("3.0.0", {"test": images[::-1]}) != before  # a file of the same size
    sizes = {path.stat().st_size for path in data_dir.rglob("toy-test.*")}
    assert len(sizes) == 1
    whole = identity("4.0.0", {"test": images, "train": [1]})
    for path in data_dir.rglob("toy-train.*"):
        path.unlink()
    here = load_dataset("tfds:toy:test").identity()
    assert here != whole and here["sha256"] == before["sha256"], "the images that are evaluated are all there"


def test_the_newest_version_and_named_configs(data_dir):
    prepare(data_dir / "toy" / "big" / "9.0.0", {"test": [1]})
    prepare(data_dir / "toy" / "big" / "10.0.0", {"test": [2]})
    assert read(load_dataset("tfds:toy:test")) == ([2], [0])
    prepare(data_dir / "toy" / "small" / "1.0.0", {"test": [3]})
    for spec, value in {"toy/small": 3, "toy/big": 2, "toy/big/9.0.0": 1, "toy/big:9.0.0": 1}.items():
        assert read(load_dataset(f"tfds:{spec}:test")) == ([value], [0]), spec
    assert load_dataset("tfds:toy/small:test").train is None
    with pytest.raises(InputError, match="found the configs big, small"):
        load_dataset("tfds:toy:test")


@pytest.mark.parametrize("path", ["{}", "a run/dataset", "./a run/dataset", "a run/../a run/dataset"])
def test_a_folder_is_opened_by_any_path(data_dir, monkeypatch, path):
    monkeypatch.chdir(data_dir)
    prepare(data_dir / "a run" / "dataset", {"train": [5]})
    assert read(load_dataset(f"tfds:{path.format(data_dir / 'a run' / 'dataset')}:train")) == ([5], [0])


def test_a_path_without_a_data_set_is_named(data_dir, monkeypatch):
    monkeypatch.chdir(data_dir)
    (data_dir / "run" / "dataset").mkdir(parents=True)
    for path in ("run/dataset", data_dir / "run" / "dataset"):
        with pytest.raises(InputError, match="run/dataset is a folder without dataset_info.json"):
            load_dataset(f"tfds:{path}:train")
    for path in ("run/datset", data_dir / "run" / "datset"):
        with pytest.raises(InputError, match="run/datset is no folder"):
            load_dataset(f"tfds:{path}:train")


@pytest.mark.parametrize("spec", ["tfds:file:///b/dataset:train", "tfds:gs://b/dataset:train", "folder:gs://b/images"])
def test_urls_are_refused(spec):
    with pytest.raises(InputError, match=f"found '{spec}', expected a path on this machine; copy the data here"):
        load_dataset(spec)


def test_not_prepared_says_how(data_dir):
    with pytest.raises(InputError, match="tfds build toy --file_format=array_record.*folder:DIR"):
        load_dataset("tfds:toy:test")


def test_prepared_as_tfrecord_says_how(data_dir):
    prepare(data_dir / "toy" / "1.0.0", {"test": [1]}, suffix="tfrecord")
    with pytest.raises(InputError, match="found tfrecord, expected array_record.*tfds build toy") as error:
        load_dataset("tfds:toy:test")
    assert "\n" not in str(error.value)


def test_unknown_split_names_the_splits(data_dir):
    prepare(data_dir / "toy" / "1.0.0", {"train": [5], "test": [0]})
    for split in ("validation", "test[", "test[:x%]"):
        with pytest.raises(InputError, match="it has: .*test.*") as error:
            load_dataset(f"tfds:toy:{split}")
        assert "\n" not in str(error.value)


def test_not_a_classification_data_set(data_dir):
    from tensorflow_datasets import features

    prepare(data_dir / "toy" / "1.0.0", {"test": [1]}, feature=features.Scalar(np.int64))
    with pytest.raises(InputError, match="found the features image, label, expected an Image and a ClassLabel"):
        load_dataset("tfds:toy:test")


@pytest.mark.parametrize("rest", ["toy", "toy:", ":test", "../toy:test", "a//b:test"])
def test_malformed_names(data_dir, rest):
    with pytest.raises(InputError, match="expected"):
        load_dataset(f"tfds:{rest}")


@pytest.mark.parametrize("name", ["features.json", "dataset_info.json"])
def test_damaged_metadata(data_dir, name):
    prepare(data_dir / "toy" / "1.0.0", {"test": [1]})
    (data_dir / "toy" / "1.0.0" / name).write_text("{")
    with pytest.raises(InputError, match=r"1\.0\.0: cannot be read") as error:
        load_dataset("tfds:toy:test")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", ["missing", "cut", "flipped"])
def test_damaged_records(data_dir, damage):
    prepare(data_dir / "toy" / "1.0.0", {"test": [1, 2, 3]})
    path = data_dir / "toy" / "1.0.0" / "toy-test.array_record-00000-of-00001"
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[200:300] = bytes(100)
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"toy.*1\.0\.0") as error:
        list(load_dataset("tfds:toy:test").batches(PREPROCESSING, 3))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("record", [b"\xff" * 20, b"", "no label"], ids=["garbage", "empty", "no label"])
def test_records_of_another_kind(data_dir, record):
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets import features as kinds

    prepare(data_dir / "toy" / "1.0.0", {"test": [1]})
    if record == "no label":
        record = kinds.FeaturesDict({"image": kinds.Image()}).serialize_example({"image": encoded(1, "RGB")})
    path = data_dir / "toy" / "1.0.0" / "toy-test.array_record-00000-of-00001"
    writer = ArrayRecordWriter(str(path), "group_size:1")
    writer.write(record)
    writer.close()
    with pytest.raises(InputError, match=r"record 0: the record (cannot be read|is empty)"):
        list(load_dataset("tfds:toy:test").batches(PREPROCESSING, 1))


@pytest.mark.parametrize("part", ["10:5", ":1%", "5:5"])
def test_a_slice_of_no_image(data_dir, part):
    prepare(data_dir / "toy" / "1.0.0", {"test": range(20)})
    found = rf"cannot open split 'test\[{part}\]' \(no image is in it\); it has: test \(20 images\)"
    with pytest.raises(InputError, match=found):
        load_dataset(f"tfds:toy:test[{part}]")


def test_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(InputError, match=r'pip install "\.\[data\]"'):
        load_dataset("bundled:fashion_mnist")


def test_bundled_images_and_labels():
    dataset = load_dataset("bundled:fashion_mnist")
    assert (len(dataset), len(dataset.train)) == (10_000, 4_096)
    assert dataset.class_names[0] == "T-shirt/top" and dataset.class_names[9] == "Ankle boot"
    raw = Preprocessing((28, 28), (0.0,) * 3, (1.0,) * 3, rescale_factor=1.0)
    test, train = (next(d.batches(raw, 500)) for d in (dataset, dataset.train))
    # The first test labels as published.
    assert test.labels[:10].tolist() == [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]
    for batch in (test, train):
        assert batch.mask.all() and len(set(batch.labels)) == 10
        assert 60 < batch.pixels.mean() < 85 and batch.pixels.max() == 255
    whole = load_dataset("bundled:fashion_mnist:train")
    assert len(whole) == 4_096 and whole.train is None
    assert read_bytes(FASHION_MNIST) < 10_000_000


def read_bytes(directory):
    return sum(path.stat().st_size for path in directory.iterdir())


def test_tensorflow_is_never_imported():
    load_dataset("bundled:fashion_mnist").sample(PREPROCESSING, 2, 0)
    assert "tensorflow" not in sys.modules and tfds.TfdsSource.labelled
