"""The evaluation images of both sides, in files: the same pixels to the last bit."""

import pathlib
from typing import NamedTuple

import numpy as np

from psaq_jax import files
from psaq_jax.data import Dataset
from psaq_jax.evaluation import check_sound, predict_logits
from psaq_jax.models.model import Model
from psaq_jax.progress import Progress

EVERY_BYTE = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)


class Pixels(NamedTuple):
    """uint8 images [n, h, w, 3] fitted to the model, or synthesized ones, normalised float32; labels [n] or None."""

    images: np.ndarray
    labels: np.ndarray | None

    def logits(self, model, batch_size: int, progress: Progress | None = None, first: int | None = None) -> np.ndarray:
        """[n, classes], of the first images or of all."""
        total, parts = min(first or len(self.images), len(self.images)), []
        size = min(batch_size, total)
        for start in range(0, total, size):
            part = self.images[start : min(start + size, total)]
            pixels = model.preprocessing.normalize(part) if part.dtype == np.uint8 else part
            padded = np.pad(pixels, [(0, size - len(part))] + [(0, 0)] * 3)  # one size, one compilation
            parts.append(predict_logits(model, padded, size)[: len(part)])
            if progress:
                progress(start + len(part), total)
        return np.concatenate(parts)


def write_synthesized(folder: pathlib.Path, images: np.ndarray) -> tuple[Pixels, dict]:
    """Writes normalised images; returns them and the fields of the release's job that name the files."""
    files.write_npy(folder / "images.npy", images)
    return Pixels(images, None), {"images": "images.npy", "count": len(images), "table": None, "labels": None}


def write_dataset(
    folder: pathlib.Path, dataset: Dataset, model: Model, batch_size: int, workers: int = 0
) -> tuple[Pixels, dict]:
    """The same of a data set: bytes, and a table [3, 256] of their normalised values. Memory: a few batches.

    Raises:
      InputError: broken images, or none.
    """
    labels = []

    def fill(path):
        shape = (len(dataset), *model.image_shape)
        images = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
        for batch in dataset.batches(model.preprocessing, batch_size, workers):
            done = sum(map(len, labels))
            labels.append(batch.labels[batch.mask])
            exact = model.preprocessing.denormalize(batch.pixels[batch.mask])  # they were bytes
            images[done : done + len(exact)] = exact
        images.flush()

    files.write(folder / "images.npy", fill)
    known = np.concatenate(labels)
    check_sound(len(known), dataset)
    files.write_npy(folder / "table.npy", np.ascontiguousarray(model.preprocessing.normalize(EVERY_BYTE).T))
    files.write_npy(folder / "labels.npy", known)
    images = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)[: len(known)]
    job = {"images": "images.npy", "count": len(known), "table": "table.npy"}
    if not dataset.labelled:
        return Pixels(images, None), job | {"labels": None}
    return Pixels(images, known), job | {"labels": "labels.npy"}
