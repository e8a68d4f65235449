"""What a model says of images without labels: the likeliest of them with their probabilities."""

from collections.abc import Sequence

import numpy as np


def likeliest(logits: np.ndarray, names: Sequence[str], count: int = 5) -> list[list[dict]]:
    """Of each row of logits [n, classes] the `count` likeliest labels, or all where they are fewer: [{"label",
    "probability"}, ...], the likeliest first and of equal ones the first class; probabilities are rounded to 6 digits.
    """
    logits = np.asarray(logits, np.float64)
    best = np.argsort(-logits, axis=-1, kind="stable")[:, :count]  # probabilities may be equal where logits are not
    parts = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities = parts / parts.sum(axis=-1, keepdims=True)
    return [
        [{"label": names[i], "probability": round(float(row[i]), 6)} for i in order]
        for row, order in zip(probabilities, best, strict=True)
    ]
