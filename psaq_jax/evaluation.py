"""Top-1, top-5 and loss of a model over a data set: padded, masked, sharded; every image exactly once.

With several processes, all call these functions alike: each takes its share of the images, all get the whole result.
"""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np

from psaq_jax import distributed, meshes
from psaq_jax.checks import check_whole
from psaq_jax.data import ArraySource, Batch, Dataset, load_dataset
from psaq_jax.data.labels import check_classes, check_labelled, check_labels
from psaq_jax.errors import InputError
from psaq_jax.models.model import check_floats, check_model
from psaq_jax.progress import Progress
from psaq_jax.quantization.transform import QuantizedModel


class Metrics(NamedTuple):
    """Means over `examples` images."""

    top1: float  # percent
    top5: float  # percent; with fewer than 5 classes, of all of them
    loss: float  # cross-entropy in nats
    examples: int


def evaluate(model_or_q, dataset, batch_size: int = 250, progress: Progress | None = None, workers: int = 0) -> Metrics:
    """Evaluates a model or a quantized model.

    Args:
      model_or_q: normalised pixels [b, h, w, 3] -> logits [b, classes], with `preprocessing` and `labels`.
      dataset: a `Dataset`, a spec for `load_dataset`, or a pair (images uint8 [n, h, w, 3 or 1], labels [n]).
      batch_size: images a step, rounded up to a multiple of the devices. The result does not depend on it
        beyond the model's own rounding.
      progress: called with (images done, images in all).
      workers: processes that read images; see `Dataset.batches`.
    Raises:
      InputError: no model, no labels, a label that the model lacks, classes in another order, no image can be read.
    """
    check_model(model_or_q, "evaluate")
    dataset = _opened(dataset)
    check_classes(dataset, tuple(getattr(model_or_q, "labels", None) or ()))
    check_labelled(dataset, getattr(model_or_q, "classes", None))
    shared = _Shared(dataset)
    parts, seen = [], 0
    for logits, labels in _logits(model_or_q, shared, batch_size, progress, workers):
        check_labels(labels, logits.shape[-1], dataset.name, lambda n, seen=seen: shared.own.names()[seen + n])
        parts.append(_scores(logits, labels))
        seen += len(labels)
    scores = shared.all_rows(np.concatenate(parts))
    check_sound(len(scores), dataset)
    return _metrics(scores)


def collect_logits(
    model_or_q, dataset, batch_size: int = 250, progress: Progress | None = None, workers: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """The logits float32 [n, classes] and labels int32 [n] (UNLABELLED: none); arguments and errors as `evaluate`, but
    that labels may be missing or wrong, and folders named after anything.
    """
    check_model(model_or_q, "collect_logits")
    shared = _Shared(_opened(dataset))
    parts = list(_logits(model_or_q, shared, batch_size, progress, workers))
    logits, labels = (shared.all_rows(np.concatenate(column)) for column in zip(*parts, strict=True))
    check_sound(len(labels), shared.dataset)
    return logits, labels


def metrics(logits: np.ndarray, labels: np.ndarray) -> Metrics:
    """What `evaluate` would say, from logits [n, classes], which must be finite, and labels [n]."""
    logits, labels = np.asarray(logits), np.asarray(labels)
    check_labels(labels, logits.shape[-1])
    if not np.isfinite(logits).all():
        raise InputError("metrics: found logits that are not finite, expected numbers; look at the model they are of")
    return _metrics(_scores(logits, labels))


def predict_logits(model_or_q, pixels, batch_size: int = 250) -> np.ndarray:
    """Normalised pixels [n, h, w, 3] -> logits float32 [n, classes], in padded batches: one compilation."""
    check_model(model_or_q, "predict_logits")
    pixels = np.asarray(check_floats(pixels), np.float32)
    if pixels.ndim != 4 or not len(pixels):
        raise InputError(f"pixels: found shape {list(pixels.shape)}, expected [n, h, w, 3], n at least 1; correct it")
    size = _batch_size(batch_size, len(pixels))
    own = distributed.own_part(len(pixels))

    def batches():
        for start in range(own.start, own.stop, size):
            part = pixels[start : min(start + size, own.stop)]
            mask = np.arange(size) < len(part)
            yield Batch(np.pad(part, [(0, size - len(part))] + [(0, 0)] * 3), np.zeros(size, np.int32), mask)

    logits = np.concatenate([logits for logits, _ in _forward(model_or_q, batches())])
    return logits if len(own) == len(pixels) else distributed.gather(logits)


def agreement(a_logits: np.ndarray, b_logits: np.ndarray) -> float:
    """Percent of rows [n, classes] with the same top-1."""
    a_logits, b_logits = np.asarray(a_logits), np.asarray(b_logits)
    if a_logits.shape != b_logits.shape or not a_logits.size:
        raise InputError(
            f"agreement: found logits {list(a_logits.shape)} and {list(b_logits.shape)}, expected equal "
            "shapes, not empty; compare two models on the same images"
        )
    return float(100 * np.mean(a_logits.argmax(-1) == b_logits.argmax(-1)))


class _Shared:
    """A data set of which this process reads its part: `own`."""

    def __init__(self, dataset: Dataset):
        part = distributed.own_part(len(dataset))
        self.dataset, self.own = dataset, dataset
        if len(part) < len(dataset):
            self.own = dataset.part(part)

    def all_rows(self, rows: np.ndarray) -> np.ndarray:
        """The rows of all processes, in the order of the images; what was skipped is known to all too."""
        if self.own is self.dataset:
            return rows
        found = distributed.gather_texts(self.own.skipped)
        self.dataset.skipped[:] = dict.fromkeys(found)  # in order: a part's are the data set's so far
        return distributed.gather(rows)


def check_sound(count: int, dataset: Dataset) -> None:
    """Raises InputError where not one image of a data set could be read."""
    if not count:
        raise InputError(f"data set: found no sound image among {len(dataset)}, expected at least one; see the log")


def _opened(dataset) -> Dataset:
    if isinstance(dataset, Dataset):
        return dataset
    if isinstance(dataset, str):
        return load_dataset(dataset)
    if not isinstance(dataset, tuple | list) or len(dataset) != 2:
        raise InputError(f"data set: found {type(dataset).__name__}, expected a spec, a Dataset or (images, labels)")
    try:
        images, labels = map(np.asarray, dataset)
    except ValueError:
        raise InputError("data set: images or labels of several shapes, expected one array of each") from None
    return Dataset(ArraySource(images, labels))


def _logits(model, shared: _Shared, batch_size, progress, workers) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    dataset = shared.own
    size = _batch_size(batch_size, len(shared.dataset))  # as one process has it: rounding depends on the batch
    done = 0
    for part in _forward(model, dataset.batches(model.preprocessing, size, workers)):
        yield part
        done = min(done + size, len(dataset))
        if progress:
            progress(done, len(dataset))


def _forward(model, batches) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(logits, labels) of the images that count. The next batch is read while the devices do this one."""
    devices = jax.local_devices()
    placement = meshes.over(devices) if len(devices) > 1 else None
    if placement and not jax.tree_util.all_leaves([model]):  # a pytree: its arrays on every device, once
        model = jax.device_put(model, placement.everywhere)
    running = None
    for batch in batches:
        pixels = batch.pixels if placement is None else jax.device_put(batch.pixels, placement.shares)
        started = model(pixels), batch
        if running:
            yield _counted(model, *running)
        running = started
    if running:
        yield _counted(model, *running)


def _counted(model, logits, batch: Batch):
    logits = np.asarray(logits, np.float32)[batch.mask]
    if not np.isfinite(logits).all():
        name, action = getattr(model, "source", "") or type(model).__name__, "take a sound copy"
        if isinstance(model, QuantizedModel):  # its source is the float model, which may be sound
            name, action = f"the quantized model of {name}", "quantize it again"
        raise InputError(f"{name}: found logits that are not finite, expected numbers; {action}")
    return logits, batch.labels[batch.mask]


def _batch_size(wanted: int, examples: int) -> int:
    """No larger than needed, and a multiple of the devices."""
    wanted = check_whole("batch_size", wanted, 1)
    devices = jax.local_device_count()
    return -(-min(wanted, examples) // devices) * devices


def _metrics(scores: np.ndarray) -> Metrics:
    """Of all images at once: the last digit of a sum depends on its order."""
    right1, right5, loss = map(float, scores.sum(axis=0))
    examples = len(scores)
    return Metrics(100 * right1 / examples, 100 * right5 / examples, loss / examples, examples)


def _scores(logits, labels) -> np.ndarray:
    """[n, 3] float64: top-1 right, top-5 right, cross-entropy. Of equal logits the first class wins."""
    logits = np.asarray(logits, np.float64)
    own = np.take_along_axis(logits, labels[:, None], axis=-1)
    earlier = np.arange(logits.shape[-1]) < labels[:, None]
    rank = ((logits > own) | ((logits == own) & earlier)).sum(axis=-1)
    highest = logits.max(axis=-1, keepdims=True)
    loss = np.log(np.exp(logits - highest).sum(axis=-1)) + (highest - own)[:, 0]
    return np.stack([rank < 1, rank < 5, loss], axis=-1)
