"""Writes prepared TFDS data sets in array_record, without TensorFlow: what `tfds.builder_from_directory` opens.

Shards first, the description last: a data set that is not whole cannot be opened.
"""

import collections
import io
import pathlib
from collections.abc import Iterable, Mapping

import numpy as np
from PIL import Image

from psaq_jax import checksums, files, resumption, temporary
from psaq_jax.errors import InputError, reason_of
from psaq_jax.extras import require
from psaq_jax.text_tables import one_line

DESCRIPTION = "dataset_info.json"
RECORDS_AT_ONCE = 64


def png(image) -> bytes:
    """A uint8 image [h, w] or [h, w, 3], lossless. Bytes: of a file at its end, TFDS stores an empty image silently."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png", optimize=True)
    return buffer.getvalue()


def features(shape: tuple[int, int, int], class_names, **more):
    """TFDS's features of a classification data set: "image" (PNG), "label", and `more`."""
    kinds = require("tensorflow_datasets", "data").features
    return kinds.FeaturesDict(
        {
            "image": kinds.Image(shape=shape, dtype=np.uint8, encoding_format="png"),
            "label": kinds.ClassLabel(names=_distinct(class_names)),
            **more,
        }
    )


def _distinct(names) -> list[str]:
    """TFDS refuses a name that two classes have, such as ImageNet's "crane", and writes one on each line."""
    names = [one_line(" ".join(name.split())) or str(i) for i, name in enumerate(names)]
    while several := {name for name, times in collections.Counter(names).items() if times > 1}:
        names = [f"{name} ({i})" if name in several else name for i, name in enumerate(names)]
    return names


def shard_name(name: str, split: str, index: int, shards: int) -> str:
    return f"{name}-{split}.array_record-{index:05d}-of-{shards:05d}"


def write_shard(path, kinds, examples: Iterable[Mapping]) -> None:
    """One file of records, whole or not at all; `path` may be a URL."""
    module = require("array_record.python.array_record_module", "data")
    serializer = require("tensorflow_datasets.core.example_serializer", "data").ExampleSerializer
    serializer = serializer(kinds.get_serialized_info())

    def write(temporary: pathlib.Path):
        writer = module.ArrayRecordWriter(str(temporary), "group_size:1")
        try:
            for example in examples:
                record = serializer.get_tf_example(kinds.encode_example(example))
                writer.write(record.SerializeToString(deterministic=True))  # else the fields' order is each process's
            writer.close()
        except RuntimeError as error:  # a full disk, for one
            raise OSError(reason_of(error)) from None

    files.write(path, write)


def count(path: str | pathlib.Path) -> int:
    """The records of a shard on this machine, all of them read; 0 where there is none, or any is damaged.

    Raises:
      TryAgain: the system fails to read it.
    """
    module = require("array_record.python.array_record_module", "data")
    try:
        checksums.of_file(pathlib.Path(path))  # array_record has one kind of error, for what is damaged too
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise resumption.unreadable(path, error.strerror) from None
    try:
        reader = module.ArrayRecordReader(str(path))
        try:
            records = reader.num_records()
            for start in range(0, records, RECORDS_AT_ONCE):  # the file's own checksums are looked at in reading alone
                reader.read(start, min(start + RECORDS_AT_ONCE, records))
            return records
        finally:
            reader.close()
    except (RuntimeError, ValueError):
        return 0


def remove_description(directory: pathlib.Path) -> None:
    """Before other shards are written where a data set may be: until they are all there, it cannot be opened.

    Raises:
      InputError: no right to, or a folder that is a file.
    """
    try:
        (directory / DESCRIPTION).unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{directory}: cannot be written ({error.strerror}); choose another folder") from None


def write_description(directory, name: str, kinds, shards: Mapping[str, list[tuple[int, int]]], **facts) -> None:
    """The JSON files that make shards a data set.

    Args:
      directory: where the shards are; may be a URL.
      kinds: of `features`.
      shards: {split: [(records, bytes) of every shard]}.
      facts: further fields of `tfds.core.DatasetInfo`: description, homepage, metadata.
    """
    tfds = require("tensorflow_datasets", "data")
    splits = []
    with temporary.folder() as folder:
        for split, sizes in shards.items():
            records, stored = zip(*sizes, strict=True)
            splits.append(tfds.core.SplitInfo(name=split, shard_lengths=list(records), num_bytes=sum(stored)))
            for i in range(len(sizes)):  # TFDS takes the name and the format from the files' names
                (folder / shard_name(name, split, i, len(sizes))).touch()
        tfds.folder_dataset.write_metadata(
            data_dir=str(folder), features=kinds, split_infos=splits, supervised_keys=("image", "label"),
            filename_template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}", check_data=False, **facts,
        )  # fmt: skip
        written = [path for path in folder.iterdir() if ".array_record-" not in path.name]
        for path in sorted(written, key=lambda path: path.name == DESCRIPTION):
            files.write_bytes(f"{directory}/{path.name}", path.read_bytes())
