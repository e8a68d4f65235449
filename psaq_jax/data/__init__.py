"""One data set interface over four sources: bundled, tfds, folder and npz."""

import os
import re

from psaq_jax import buckets
from psaq_jax.data.bundled import bundled_source
from psaq_jax.data.dataset import UNLABELLED, Batch, Dataset
from psaq_jax.data.folder import class_folders, folder_source
from psaq_jax.data.kept import KeptDataset
from psaq_jax.data.npz import ArraySource, NpzSource
from psaq_jax.data.tfds import TfdsSource, has_split, prepared_directory
from psaq_jax.errors import InputError, reading

__all__ = ["UNLABELLED", "ArraySource", "Batch", "Dataset", "KeptDataset", "load_dataset"]

SPECS = "bundled:fashion_mnist, tfds:NAME[/CONFIG]:SPLIT, folder:DIR or npz:FILE"
EVALUATION_FOLDERS = ("val", "validation", "test")


def load_dataset(
    spec: str, errors: str = "stop", class_index: str | None = None, labels_file: str | None = None
) -> Dataset:
    """Opens a data set; no image is read yet.

    Args:
      spec: one of
        bundled:fashion_mnist[:test | :train];
        tfds:NAME[/CONFIG][:VERSION]:SPLIT, prepared as array_record under TFDS_DATA_DIR; slices such as
        "validation[:10%]" work; tfds:DIR:SPLIT, where DIR is a prepared data set's own folder;
        folder:DIR, one folder per class (or flat, with `labels_file` or unlabelled); a DIR that holds the
        folders "train" and "val" ("validation", "test") and no others is evaluated on the latter;
        npz:FILE, `images` uint8 [n, h, w, 3 or 1] and `labels` int [n] (optional).
      errors: "stop" at a broken image, or "skip" it.
      class_index, labels_file: of folder:DIR only; see `psaq_jax.data.folder.folder_source`.
    Returns:
      The data set. Its `train` is the training split of bundled and tfds (where there is one, and none of it is
      evaluated) and of a folder that holds both; otherwise None: only the evaluation images can then serve as real
      calibration images.
    Raises:
      InputError: an unknown source, nothing there, or contents that do not fit, in one line.
    """
    kind, _, rest = spec.partition(":")
    if kind not in _OPENERS or not rest:
        raise InputError(f"data: found {spec!r}, expected {SPECS}; correct the spec")
    if buckets.is_url(rest):
        raise InputError(f"data: found {spec!r}, expected a path on this machine; copy the data here and name it")
    if kind != "folder" and (class_index or labels_file):
        raise InputError(
            f"class_index, labels_file: found with {spec!r}, expected with folder:DIR only; leave them out"
        )
    options = [path and os.path.expanduser(path) for path in (class_index, labels_file)] if kind == "folder" else ()
    with reading(rest):
        source, train = _OPENERS[kind](rest, *options)
    return Dataset(source, None if train is None else Dataset(train, None, errors, spec), errors, spec)


def _open_bundled(rest):
    name, _, split = rest.partition(":")
    return bundled_source(name, split or "test"), None if split == "train" else bundled_source(name, "train")


def _open_tfds(rest):
    match = re.fullmatch(r"(?P<name>[^:\[\]]+(:\d+\.\d+\.\d+)?):(?P<split>[^:].*)", rest)
    if not match:
        raise InputError(f"data: found 'tfds:{rest}', expected tfds:NAME[/CONFIG]:SPLIT; correct the spec")
    directory = prepared_directory(match["name"])
    source = TfdsSource(directory, match["split"])
    evaluated = re.search(r"(^|\+)\s*(train|all)\b", match["split"])
    return source, None if evaluated or not has_split(directory, "train") else TfdsSource(directory, "train")


def _open_folder(directory, class_index, labels_file):
    directory = os.path.expanduser(directory)
    inside = set(class_folders(directory)) if os.path.isdir(directory) else set()
    evaluation = [name for name in EVALUATION_FOLDERS if name in inside]
    if labels_file or "train" not in inside or not evaluation or inside - {"train", *EVALUATION_FOLDERS}:
        return folder_source(directory, class_index, labels_file), None
    source = folder_source(os.path.join(directory, evaluation[0]), class_index)
    train = folder_source(os.path.join(directory, "train"), class_index)
    if source.class_names != train.class_names:
        raise InputError(
            f"{directory}: found other classes in train than in {evaluation[0]}, expected the same; "
            f"use folder:{os.path.join(directory, evaluation[0])}"
        )
    return source, train


def _open_npz(path):
    return NpzSource(os.path.expanduser(path)), None


_OPENERS = {"bundled": _open_bundled, "tfds": _open_tfds, "folder": _open_folder, "npz": _open_npz}
