"""Images as files: one folder per class, or one flat folder with a labels file."""

import json
import logging
import os
import pathlib
import re

import numpy as np

from psaq_jax.data.dataset import UNLABELLED
from psaq_jax.data.decoding import decode
from psaq_jax.errors import InputError, first

LOG = logging.getLogger(__name__)
# torchvision's list, so that the same files count, but for hidden ones.
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


class FolderSource:
    """Image files and their labels, decoded when asked for.

    Args:
      files: (path, label) in order.
      numbered_by_name: whether the classes' numbers are the order of their folders' names, for want of better.
    """

    def __init__(self, files, class_names, labelled: bool = True, numbered_by_name: bool = False):
        self.files, self.class_names, self.labelled = files, class_names, labelled
        self.numbered_by_name = numbered_by_name
        self.labels = np.array([label for _, label in files]) if labelled else None

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        path, label = self.files[index]
        return decode(pathlib.Path(path)), label

    def describe(self, index):
        return self.files[index][0]

    def stamps(self):
        return [(path, _size(path)) for path, _ in self.files]


def _size(path: str) -> int | None:
    try:
        return os.path.getsize(path)
    except OSError:  # a link to nothing: decoding it says so
        return None


def folder_source(directory, class_index: str | None = None, labels_file: str | None = None) -> FolderSource:
    """A folder of images in torchvision's ImageFolder order: classes by name, inside by path, subfolders too.

    Args:
      class_index: a JSON file that gives the classes their numbers: a list of folder names, or ImageNet's
        {"0": ["n01440764", "tench"], ...}. Without it, classes count in the order of their folders' names.
      labels_file: labels of a flat folder: one integer per line in the order of the sorted file names (as
        ILSVRC2012_validation_ground_truth.txt, but counted from 0), or "name label" per line.
    Raises:
      InputError: no such folder, no images, a class folder that `class_index` lacks, or labels that misfit.
    """
    directory = pathlib.Path(directory)
    if not directory.is_dir():
        raise InputError(f"{directory}: no such folder; check the path")
    names = _class_names(class_index) if class_index else None
    if labels_file:
        return _flat(directory, labels_file, names and tuple(title for _, title in names))
    folders = class_folders(directory)
    if not folders:
        images = _images(directory)
        if not images:
            raise InputError(
                f"{directory}: found no folders and no images, expected one folder per class; check the path"
            )
        return FolderSource([(path, UNLABELLED) for path in images], None, labelled=False)
    names = names or [(folder, folder) for folder in folders]
    numbers = {folder: number for number, (folder, _) in enumerate(names)}
    unknown = [folder for folder in folders if folder not in numbers]
    if unknown:
        raise InputError(
            f"{directory}: found the folder {unknown[0]!r}, expected one named in {class_index}; correct it"
        )
    images = {folder: _images(directory / folder) for folder in folders}
    files = [(path, numbers[folder]) for folder in folders for path in images[folder]]
    if empty := [folder for folder in folders if not images[folder]]:
        LOG.warning("%s: found no image of class %s", directory, first([repr(folder) for folder in empty]))
    if beside := sum(map(_is_image, os.listdir(directory))):
        LOG.warning("%s: images beside the class folders have no class: %d left out", directory, beside)
    if not files:
        raise InputError(f"{directory}: found no images, expected {', '.join(SUFFIXES)} in the class folders; check it")
    return FolderSource(files, tuple(title for _, title in names), numbered_by_name=not class_index)


def class_folders(directory) -> list[str]:
    """Names of the folders in a folder, sorted; hidden ones (.cache, .ipynb_checkpoints) are no classes."""
    return sorted(entry.name for entry in os.scandir(directory) if entry.is_dir() and not entry.name.startswith("."))


def _images(directory: pathlib.Path) -> list[str]:
    """Those of a folder and all below it but hidden ones. A link to a folder that is being walked would go on for ever:
    left out.
    """
    top, place = os.fspath(directory), pathlib.Path(os.path.realpath(directory))
    found, above = [], {top: {*map(str, (place, *place.parents))}}  # real paths of each and of what led there
    for root, folders, names in os.walk(top, onerror=_refuse, followlinks=True):
        real = {name: os.path.realpath(os.path.join(root, name)) for name in folders}
        folders[:] = [name for name in folders if not name.startswith(".") and real[name] not in above[root]]
        above |= {os.path.join(root, name): above[root] | {real[name]} for name in folders}
        found.append((root, [os.path.join(root, name) for name in sorted(names) if _is_image(name)]))
    return [path for _, paths in sorted(found) for path in paths]


def _is_image(name: str) -> bool:
    """By its name; hidden ones, such as macOS's ._photo.jpg, are none."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _refuse(error: OSError):
    raise error


def _class_names(path: str) -> list[tuple[str, str]]:
    """[(folder name, class name)] in the order of the labels."""
    try:
        content = json.loads(pathlib.Path(path).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error}); give a list of folder names") from None
    try:
        if isinstance(content, dict):
            content = [content[str(number)] for number in range(len(content))]
        names = [(entry, entry) if isinstance(entry, str) else (entry[0], entry[1]) for entry in content]
    except (KeyError, TypeError, IndexError):
        names = []
    if not (names and all(isinstance(n, str) for pair in names for n in pair) and len(dict(names)) == len(names)):
        raise InputError(
            f"{path}: found another structure, expected a JSON list of different folder names, or "
            '{"0": ["n01440764", "tench"], ...} numbered without gaps; correct it'
        )
    return names


def _flat(directory: pathlib.Path, labels_file: str, class_names) -> FolderSource:
    try:
        text = pathlib.Path(labels_file).read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{labels_file}: cannot be read ({error}); give a text file of labels") from None
    lines = [line.rsplit(maxsplit=1) for line in text.splitlines() if line.strip()]
    images = _images(directory)
    if len(lines) != len(images) or not lines:
        raise InputError(
            f"{labels_file}: found {len(lines)} labels, expected {len(images)}, one for each image in "
            f"{directory}; correct it"
        )
    labels = []
    for number, line in enumerate(lines, 1):
        label = line[-1]
        limit = len(class_names) if class_names else 2**31
        if not re.fullmatch("[0-9]{1,10}", label) or int(label) >= limit:
            expected = f'"label" or "name label", a class number from 0 to {limit - 1}'
            raise InputError(f"{labels_file}, line {number}: found {' '.join(line)!r}, expected {expected}; correct it")
        labels.append(int(label))
    if any(len(line) == 2 for line in lines):
        by_name = {line[0]: label for line, label in zip(lines, labels, strict=True)}
        keys = [os.path.relpath(path, directory) for path in images]
        missing = [key for key in keys if key not in by_name]
        if missing:
            raise InputError(f"{labels_file}: found no label for {missing[0]}, expected one per image; add it")
        labels = [by_name[key] for key in keys]
    return FolderSource(list(zip(images, labels, strict=True)), class_names)
