"""A data set that decodes and fits its images once: later passes read them from a file."""

import contextlib
import dataclasses
import os
import shutil
import tempfile
import weakref
from typing import BinaryIO

import numpy as np
from absl import logging

from psaq_jax import resumption
from psaq_jax.data.dataset import Dataset
from psaq_jax.models.preprocessing import Preprocessing


@dataclasses.dataclass(eq=False)
class _Pass:
    """A whole pass: uint8 images one after another in an open file, labels int32 [n], and which of them are sound."""

    preprocess: Preprocessing
    descriptor: int
    labels: np.ndarray
    mask: np.ndarray

    def __post_init__(self):
        weakref.finalize(self, os.close, self.descriptor)

    def read(self, task: range):
        """As `dataset._load`; read, not mapped, for mapped pages would count as the process's own memory."""
        images = np.empty((len(task), *self.preprocess.image_size, 3), np.uint8)
        content, at = memoryview(images).cast("B"), task.start * images[0].size
        while content:
            count = os.preadv(self.descriptor, [content], at)
            if not count:
                raise OSError("it is cut short")
            content, at = content[count:], at + count
        part = slice(task.start, task.stop)
        return images, self.labels[part], self.mask[part], []


class KeptDataset(Dataset):
    """The same data set. Its last whole pass stays in a file, for passes of the same preprocessing.

    The file has no name and goes with the process. Where it would take half of what the disk has free, every pass
    decodes.
    """

    def __init__(self, dataset: Dataset, folder: str | os.PathLike):
        super().__init__(dataset.source, dataset.train, dataset.errors, dataset.name)
        self.skipped = dataset.skipped
        self._folder, self._kept, self._parts = folder, None, {}

    def part(self, indices: range) -> "KeptDataset":
        """The same one for the same images, with what it keeps."""
        if indices not in self._parts:
            self._parts[indices] = KeptDataset(super().part(indices), self._folder)
        return self._parts[indices]

    def _loaded(self, preprocess: Preprocessing, tasks: list[range], workers: int):
        if self._kept and self._kept.preprocess == preprocess:
            try:
                yield from map(self._kept.read, tasks)
            except OSError as error:
                raise resumption.unreadable(self._folder, error.strerror or str(error)) from None
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
                descriptor = os.dup(file.fileno())
                self._kept = _Pass(preprocess, descriptor, np.concatenate(labels), np.concatenate(mask))

    def _opened(self, stack: contextlib.ExitStack, size: int) -> BinaryIO | None:
        try:
            if size > shutil.disk_usage(self._folder).free // 2:  # what a job is for needs room too
                return self._without(f"their {size / 1e9:.1f} GB are more than half of what is free")
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
            with contextlib.suppress(OSError):
                file.close()
            return self._without(error.strerror or error)

    def _without(self, reason) -> None:
        logging.warning("%s: decoded images are not kept (%s); every pass decodes them", self._folder, reason)
