"""Data sets that TensorFlow Datasets prepared as array_record, read without TensorFlow."""

import hashlib
import os
import pathlib
import re

from psaq_jax.data.dataset import UNLABELLED
from psaq_jax.data.decoding import decode
from psaq_jax.errors import InputError, reason_of
from psaq_jax.extras import require

BLOCK = 2**16  # bytes; array_record fills its files up to a multiple


class TfdsSource:
    """One split (TFDS's slices included, such as "validation[:10%]") of a prepared data set in `directory`.

    Raises:
      InputError: no `data` extra, nothing prepared there, prepared as tfrecord, an unknown split, or not a
        classification data set of images.
    """

    labelled, labels = True, None

    def __init__(self, directory, split: str):
        self.directory, self.split = str(directory), split
        builder = _builder(self.directory)
        self.image_key, self.label_key, self.class_names = _classification_keys(builder.info.features, self.directory)
        self.records = _open(builder, split, self.image_key)
        self.shards = builder.info.splits[split].filepaths

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        try:
            record = self.records[index]
            image = record[self.image_key]
            label = int(record[self.label_key]) if image else UNLABELLED
        except Exception as error:  # array_record, protobuf and TFDS raise what they run into
            raise InputError(f"the record cannot be read ({reason_of(error)}); prepare the data set again") from None
        if not image:  # what a damaged array_record gives instead of an error
            raise InputError("the record is empty; prepare the data set again")
        return decode(image), label

    def describe(self, index):
        return f"{self.directory}, split {self.split}, record {index}"

    def stamps(self):
        return [_stamp(path) for path in self.shards]

    def __reduce__(self):
        return TfdsSource, (self.directory, self.split)


def _stamp(path) -> tuple:
    """A shard's name, size and the SHA-256 of its last blocks, where the places of its records are: sizes alone go by
    whole blocks. Its name alone where it cannot be read: a split that nobody reads need not be here.
    """
    name = os.path.basename(path)
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - 2 * BLOCK, 0))
            return name, size, hashlib.sha256(file.read()).hexdigest()
    except OSError:
        return (name,)


def has_split(directory, split: str) -> bool:
    """Whether a prepared data set has a split of that name, with something in it."""
    splits = _builder(str(directory)).info.splits
    return split in splits and splits[split].num_examples > 0


def prepared_directory(name: str) -> pathlib.Path:
    """The folder of NAME[/CONFIG][/VERSION] (or NAME:VERSION) under TFDS_DATA_DIR, the newest version; or a folder.

    `name` may be the path of a prepared data set itself, such as /data/toy/1.0.0 or run/dataset.

    Raises:
      InputError: nothing is prepared there, or there are several configs to choose from.
    """
    given = pathlib.Path(os.path.expanduser(name))
    if (given / "dataset_info.json").is_file():
        return given
    missing = f"{given} is {'a folder without dataset_info.json' if given.is_dir() else 'no folder'}"
    root = pathlib.Path(os.path.expanduser(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"))
    parts = name.replace(":", "/").split("/")
    if not all(re.fullmatch(r"[\w.\-]+", part) for part in parts) or ".." in parts:
        raise InputError(
            f"tfds: found {name!r}, expected a prepared data set's folder ({missing}), or NAME, NAME/CONFIG or "
            "NAME/CONFIG/VERSION; correct it"
        )
    folder = root.joinpath(*parts)
    for _ in range(2):  # a missing config, then the version
        if (folder / "dataset_info.json").is_file():
            return folder
        inside = sorted(entry for entry in folder.glob("*") if entry.is_dir())
        versions = [entry for entry in inside if re.fullmatch(r"\d+\.\d+\.\d+", entry.name)]
        if versions:
            folder = max(versions, key=lambda entry: tuple(map(int, entry.name.split("."))))
        elif len(inside) > 1:
            names = ", ".join(entry.name for entry in inside)
            raise InputError(
                f"{folder}: found the configs {names}, expected one to be named; use tfds:{name}/CONFIG:SPLIT"
            )
        elif inside:
            folder = inside[0]
    if (folder / "dataset_info.json").is_file():
        return folder
    raise InputError(
        f"{root}: found no prepared {name!r}, and {missing}; correct it, or run `tfds build "
        f"{name} --file_format=array_record` where TensorFlow is installed, point TFDS_DATA_DIR at the result, or use "
        "folder:DIR"
    )


def _builder(directory: str):
    tfds, json_format = require("tensorflow_datasets", "data"), require("google.protobuf.json_format", "data")
    try:
        builder = tfds.builder_from_directory(directory)
    except (FileNotFoundError, ValueError, KeyError, TypeError, json_format.Error) as error:
        raise InputError(f"{directory}: cannot be read ({reason_of(error)}); prepare the data set again") from None
    file_format = builder.info.file_format
    if file_format is None or file_format.value != "array_record":
        found = file_format.value if file_format else "an unknown format"
        raise InputError(
            f"{directory}: found {found}, expected array_record, which needs no TensorFlow; run `tfds build "
            f"{builder.name} --file_format=array_record` where TensorFlow is installed, or use folder:DIR"
        )
    return builder


def _selects_none(builder, split: str) -> bool:
    """Whether it is a part of a split that the data set has, such as "train[:1%]", with nothing in it."""
    try:
        return builder.info.splits[split].num_examples <= 0
    except (ValueError, KeyError, AssertionError):
        return False


def _open(builder, split: str, image_key: str):
    import tensorflow_datasets as tfds

    try:
        records = builder.as_data_source(split, decoders={image_key: tfds.decode.SkipDecoding()})
        len(records)  # a slice that ends before it begins
        return records
    except (ValueError, KeyError, AssertionError, FileNotFoundError, NotImplementedError) as error:
        splits = ", ".join(f"{name} ({of.num_examples} images)" for name, of in builder.info.splits.items()) or "none"
        reason = "no image is in it" if _selects_none(builder, split) else reason_of(error)
        raise InputError(f"{builder.data_dir}: cannot open split {split!r} ({reason}); it has: {splits}") from None


def _classification_keys(features, directory) -> tuple[str, str, tuple[str, ...]]:
    """(image feature, label feature, class names) of a data set."""
    import tensorflow_datasets as tfds

    def first(kind, preferred):
        found = [key for key, feature in features.items() if isinstance(feature, kind)]
        return preferred if preferred in found else next(iter(found), None)

    image, label = first(tfds.features.Image, "image"), first(tfds.features.ClassLabel, "label")
    if image is None or label is None:
        raise InputError(
            f"{directory}: found the features {', '.join(sorted(features))}, expected an Image and a "
            "ClassLabel; choose a classification data set"
        )
    return image, label, tuple(features[label].names)
