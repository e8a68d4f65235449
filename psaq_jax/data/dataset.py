"""From a source of images to padded, masked batches: what every data set shares. b batch, h, w pixels."""

import functools
import gc
import itertools
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from absl import flags, logging
from PIL import Image

from psaq_jax import checksums
from psaq_jax.checks import check_whole
from psaq_jax.errors import InputError
from psaq_jax.extras import require
from psaq_jax.models.preprocessing import Preprocessing
from psaq_jax.text_tables import one_line

UNLABELLED = -1


class Source(Protocol):
    """Random access to (image, label). Picklable, so that worker processes can have it."""

    class_names: tuple[str, ...] | None
    labelled: bool
    labels: np.ndarray | None  # of all images, where they are known without reading one

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Image.Image | np.ndarray, int]:
        """The image and its label, `UNLABELLED` where there is none.

        Raises:
          InputError: the image cannot be read.
        """
        ...

    def describe(self, index: int) -> str:
        """What to call an image in a message, such as its file's path."""
        ...

    def stamps(self) -> list:
        """JSON values that change with the contents, found without reading an image: names and sizes of files."""
        ...


class Batch(NamedTuple):
    """Padded examples: where `mask` is False, pixels and label are zero and must not be counted."""

    pixels: np.ndarray  # float32 [b, h, w, 3], normalised
    labels: np.ndarray  # int32 [b]; UNLABELLED where the source has none
    mask: np.ndarray  # bool [b]


class Dataset:
    """A source, what to do about its broken images, and the split for real calibration images.

    Attributes:
      class_names: the names of the labels 0, 1, ..., or None.
      labelled: whether the images have labels.
      labels: int [n] where they are known without reading an image; else None.
      train: the training split of the same source, or None where it has none or that is evaluated.
      name: what messages call it, such as its spec.
      skipped: the messages of the broken images that were skipped so far, each once, in order.
    """

    def __init__(self, source: Source, train: "Dataset | None" = None, errors: str = "stop", name: str = "data set"):
        if errors not in ("stop", "skip"):
            raise InputError(f'errors: found {errors!r}, expected "stop" or "skip"; correct it')
        if not len(source):
            raise InputError(f"{name}: found 0 images, expected at least one; check the spec and the split")
        self.source, self.train, self.errors, self.name = source, train, errors, name
        self.class_names, self.labelled, self.labels = source.class_names, source.labelled, source.labels
        self.skipped: list[str] = []

    def __len__(self) -> int:
        return len(self.source)

    @property
    def for_calibration(self) -> "Dataset":
        """Where real images to calibrate on come from: the training split or, without one, what is evaluated."""
        return self.train or self

    def identity(self) -> dict:
        """What tells these images and labels from others behind the same spec, found without reading an image."""
        labels = None if self.labels is None else np.asarray(self.labels).tolist()
        contents = checksums.of_json([self.class_names, labels, self.source.stamps()])
        own = {"examples": len(self), "sha256": contents}
        return own | ({"train": self.train.identity()} if self.train else {})

    def part(self, indices: range) -> "Dataset":
        """Some consecutive images, as a data set of their own; what either skips, both know."""
        part = Dataset(_Part(self.source, indices), errors=self.errors, name=self.name)
        part.skipped = self.skipped
        return part

    def names(self) -> list[str]:
        """What to call each image that `batches` counted, in order: those skipped so far are left out."""
        names = list(map(self.source.describe, range(len(self))))
        known, skipped = set(names), set()
        for message in self.skipped:  # "NAME: what is wrong", and a name may have colons too
            ends = (end.start() for end in re.finditer(": ", message))
            skipped.add(max((message[:end] for end in ends if message[:end] in known), key=len, default=None))
        return [name for name in names if name not in skipped]

    def batches(self, preprocess: Preprocessing, batch_size: int, workers: int = 0) -> Iterator[Batch]:
        """Every image exactly once, in order; the last batch padded with zeros. Memory: a few batches.

        Args:
          preprocess: such as `model.preprocessing`.
          workers: processes that decode and resize (needs the extra `data`); 0: the caller's own thread. The
            batches are the same for any number. They start some seconds late, and a script that asks for them
            needs the guard `if __name__ == "__main__"`.
        Raises:
          InputError: a broken image; errors="skip" logs it, adds it to `skipped` and masks its place.
        """
        batch_size, workers = check_whole("batch_size", batch_size, 1), check_whole("workers", workers, 0)
        indices = range(len(self))
        tasks = [indices[start : start + batch_size] for start in range(0, len(self), batch_size)]
        for images, labels, mask, broken in self._loaded(preprocess, tasks, workers):
            self._report(broken)
            pixels = np.zeros((batch_size, *preprocess.image_size, 3), np.float32)
            pixels[: len(mask)][mask] = preprocess.normalize(images[mask])
            padding = (0, batch_size - len(mask))
            yield Batch(pixels, np.pad(labels, padding), np.pad(mask, padding))

    def _loaded(self, preprocess: Preprocessing, tasks: list[range], workers: int) -> Iterator[tuple]:
        """What `_load` makes of each task, in order."""
        return _run(functools.partial(_load, self.source, preprocess), tasks, workers)

    def sample(self, preprocess: Preprocessing, n: int, seed: int, fewer: bool = False) -> np.ndarray:
        """`n` random images without replacement, the same for the same seed: normalised pixels [n, h, w, 3].

        Args:
          fewer: take what there is, at least one, where that is fewer than `n`.
        Raises:
          InputError: fewer than `n` images, or a broken one (errors="skip": another takes its place).
        """
        n = min(n, len(self)) if fewer else n
        if not 1 <= n <= len(self):
            raise InputError(f"sample: found {len(self)} images, expected at least the {n} asked for; ask for fewer")
        order, kept = iter(np.random.default_rng(seed).permutation(len(self))), []
        while missing := n - sum(map(len, kept)):
            images, _, mask, broken = _load(self.source, preprocess, list(itertools.islice(order, missing)))
            self._report(broken)
            if not len(mask):
                if fewer and missing < n:
                    break
                raise InputError(f"sample: found {n - missing} sound images, expected {n}; ask for fewer")
            kept.append(images[mask])
        return preprocess.normalize(np.concatenate(kept))

    def _report(self, broken: Sequence[str]) -> None:
        if broken and self.errors == "stop":
            raise InputError(broken[0])
        for message in broken:
            if message not in self.skipped:
                logging.warning("skipped: %s", one_line(" ".join(message.splitlines())))
                self.skipped.append(message)


class _Part:
    """Some consecutive images of a source, as a source."""

    def __init__(self, source, part: range):
        self.source, self.part = source, part
        self.class_names, self.labelled, self.labels = source.class_names, source.labelled, None

    def __len__(self):
        return len(self.part)

    def __getitem__(self, index):
        return self.source[self.part[index]]

    def describe(self, index):
        return self.source.describe(self.part[index])


def _load(source: Source, preprocess: Preprocessing, indices: Sequence[int]):
    """Reads and fits some images -> (uint8 [k, h, w, 3], labels int32 [k], mask [k], messages of broken).

    Messages, not exceptions, because those lose their type on the way out of a worker process.
    """
    images = np.zeros((len(indices), *preprocess.image_size, 3), np.uint8)
    labels = np.zeros(len(indices), np.int32)
    mask = np.zeros(len(indices), bool)
    broken = []
    for k, index in enumerate(indices):
        try:
            image, labels[k] = source[int(index)]
            images[k] = preprocess.fit([image])[0]
            mask[k] = True
        except InputError as error:
            labels[k] = 0
            broken.append(f"{source.describe(int(index))}: {error}")
    return images, labels, mask, broken


def _run(load, tasks, workers):
    """Applies `load` to every task, in order, in worker processes.

    Tasks are whole batches: grain's own batching would give each worker a short last batch of its own.
    """
    if not workers:
        yield from map(load, tasks)
        return
    grain = require("grain", "data")
    if not flags.FLAGS.is_parsed():  # grain reads flags of its own, also where no absl program parsed any
        flags.FLAGS.mark_as_parsed()
    options = grain.MultiprocessingOptions(num_workers=min(workers, len(tasks)), per_worker_buffer_size=2)
    read = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
    iterator = iter(grain.MapDataset.source(tasks).map(load).to_iter_dataset(read).mp_prefetch(options))
    try:
        for *arrays, broken in iterator:
            yield *map(np.array, arrays), broken  # copies: the traceback of an error may keep them until the end
    finally:
        iterator.close()
        gc.collect()  # the end of a worker leaves its last batch, in shared memory, in a cycle with a traceback
