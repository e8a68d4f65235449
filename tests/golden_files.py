"""The reference numbers in tests/golden/, in our layout (NHWC, output channels last)."""

import pathlib

import numpy as np

GOLDEN = pathlib.Path(__file__).parent / "golden"


def golden(name: str) -> dict[str, np.ndarray]:
    """An npz of tests/golden as a dictionary."""
    with np.load(GOLDEN / name) as archive:
        return dict(archive)


def nhwc(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(images, -3, -1))
