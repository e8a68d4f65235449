"""A data set that decodes and fits its images once: later passes read them from a file."""

import contextlib
import os
import shutil
import tempfile
from typing import BinaryIO, NamedTuple

import numpy as np
from absl import logging

from psaq_jax.data.pipeline import Dataset
from psaq_jax.models.preprocessing import Preprocessing


class _Pass(NamedTuple):
    """A whole pass: uint8 images [n, h, w, 3] in a file, labels int32 [n], and which of them are sound."""

    preprocess: Preprocessing
    images: np.memmap
    labels: np.ndarray
    mask: np.ndarray

    def read(self, task: range):
        part = slice(task.start, task.stop)
        return np.asarray(self.images[part]), self.labels[part], self.mask[part], []


class KeptDataset(Dataset):
    """The same data set. Its last whole pass stays in a file, for passes of the same preprocessing.

    The file has no name and goes with the process. Where it would take half of what the disk has free, every pass
    decodes.
    """

    def __init__(self, dataset: Dataset, folder: str | os.PathLike):
        super().__init__(dataset.source, dataset.train, dataset.errors, dataset.name)
        self.skipped = dataset.skipped
        self._folder, self._kept = folder, None

    def _loaded(self, preprocess: Preprocessing, tasks: list[range], workers: int):
        if self._kept and self._kept.preprocess == preprocess:
            yield from map(self._kept.read, tasks)
            return
        self._kept, labels, mask = None, [], []
        with contextlib.ExitStack() as stack:
            file = self._opened(stack, len(self) * int(np.prod(preprocess.image_size)) * 3)
            for loaded in super()._loaded(preprocess, tasks, workers):
                file = file and self._written(file, loaded[0])
                labels.append(loaded[1])
                mask.append(loaded[2])
                yield loaded
            if file:
                images = np.memmap(file, np.uint8, "r", shape=(len(self), *preprocess.image_size, 3))
                self._kept = _Pass(preprocess, images, np.concatenate(labels), np.concatenate(mask))

    def _opened(self, stack: contextlib.ExitStack, size: int) -> BinaryIO | None:
        try:
            if size > shutil.disk_usage(self._folder).free // 2:  # what a job is for needs room too
                return self._without("they would take half of what is free")
            return stack.enter_context(tempfile.TemporaryFile(dir=self._folder, buffering=0))
        except OSError as error:
            return self._without(error.strerror or error)

    def _written(self, file: BinaryIO, images: np.ndarray) -> BinaryIO | None:
        """The file, or None where it has no room for the images: it is given back at once."""
        try:
            content = memoryview(images).cast("B")
            while content:
                content = content[file.write(content) :]
            return file
        except OSError as error:
            file.close()
            return self._without(error.strerror or error)

    def _without(self, reason) -> None:
        logging.info("%s: decoded images are not kept (%s)", self._folder, reason)
