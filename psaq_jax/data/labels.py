"""Whether the labels of a data set are a model's: its classes by name and number, and every label one of them."""

import collections
from collections.abc import Callable, Sequence

import numpy as np

from psaq_jax.data.dataset import UNLABELLED, Dataset
from psaq_jax.errors import InputError


def check_classes(dataset: Dataset, labels: tuple[str, ...]) -> None:
    """Raises InputError where a class of the data set, by its name a model's label, has another number there, where
    there are more classes than labels, or fewer whose numbers nothing tells.

    Capitals don't count. Names that several classes have say nothing: ImageNet has two cranes, and in Keras's list two
    maillots.
    """
    count = len(dataset.class_names or ())
    if labels and count > len(labels):
        raise InputError(
            f"{dataset.name}: found {count} classes, the model has {len(labels)}; give the data set that the model was "
            "trained for"
        )
    names, known = ([name.strip().casefold() for name in x] for x in (dataset.class_names or (), labels))
    several = {name for x in (names, known) for name, times in collections.Counter(x).items() if times > 1}
    numbers = {name: number for number, name in enumerate(known) if name not in several}
    for number, name in enumerate(names):
        if numbers.get(name, number) != number:
            raise InputError(
                f"{dataset.name}: found class {dataset.class_names[number]!r} as number {number}, the model has it as "
                f"{numbers[name]}; give a class_index file in the model's order"
            )
    if getattr(dataset.source, "numbered_by_name", False) and count < len(labels) and not set(names) <= set(known):
        raise InputError(
            f"{dataset.name}: found {count} class folders, the model has {len(labels)} classes; which of them these "
            "are their names don't tell: give class_index"
        )


def check_labelled(dataset: Dataset, classes: int | None) -> None:
    """Raises InputError where there are no labels, or, as far as they are known without reading images, where one is
    beyond the model's classes.
    """
    if not dataset.labelled:
        found = f"{dataset.name}: found images without labels, expected labels to evaluate on"
        raise InputError(f"{found}; add them (a flat folder's: labels_file) or predict")
    if classes and dataset.labels is not None:
        check_labels(dataset.labels, classes, dataset.name, dataset.source.describe)


def check_labels(labels, classes: int, where: str = "labels", image: Callable[[int], str] = "image {}".format) -> None:
    """Raises InputError where one of the labels is none of the model's classes; `image`: what to call number n."""
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        label = int(labels[wrong[0]])
        found = "no label" if label == UNLABELLED else f"label {label}"
        raise InputError(
            f"{where}: found {found} at {image(int(wrong[0]))}, expected 0 to {classes - 1}, the "
            "model's classes; choose a data set with the model's classes or correct its labels"
        )


def class_names(labels: Sequence[str], numbers) -> list[str]:
    """The labels of class numbers, the number itself where there is no label for it."""
    return [labels[n] if 0 <= n < len(labels) else str(n) for n in map(int, numbers)]
