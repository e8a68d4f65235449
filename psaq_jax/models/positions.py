"""Position embeddings at another resolution, as in transformers and timm: torch's bicubic, align_corners=False.

timm and DINOv2 with registers ask for antialiasing, transformers' other families don't.
"""

import numpy as np

CUBIC, ANTIALIASED = -0.75, -0.5  # torch's coefficients; Pillow has the second


def cubic(distance: np.ndarray, a: float) -> np.ndarray:
    """The bicubic kernel of coefficient `a` at distances from 0."""
    near = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    far = a * (distance**3 - 5 * distance**2 + 8 * distance - 4)
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0))


def antialiased_matrix(before: int, after: int) -> np.ndarray:
    """[after, before] float64: bicubic resampling of a row of samples, the kernel as wide as the new samples lie
    apart; beyond the borders nothing counts.
    """
    width = max(before / after, 1.0)
    centres = (np.arange(after) + 0.5) * before / after - 0.5
    matrix = cubic(np.abs(np.arange(before) - centres[:, None]) / width, ANTIALIASED)
    return matrix / matrix.sum(axis=1, keepdims=True)


def bicubic_matrix(before: int, after: int) -> np.ndarray:
    """[after, before] float64: bicubic resampling of a row of samples, borders repeated, no antialiasing."""
    matrix = np.zeros((after, before))
    centres = (np.arange(after) + 0.5) * before / after - 0.5
    first = np.floor(centres).astype(int)
    for tap in range(-1, 3):
        at = np.arange(after), np.clip(first + tap, 0, before - 1)
        np.add.at(matrix, at, cubic(np.abs(centres - (first + tap)), CUBIC))
    return matrix


def interpolate(
    table: np.ndarray, before: tuple[int, int], after: tuple[int, int], antialias: bool = False
) -> np.ndarray:
    """Position embeddings [special + rows·columns, c] from one patch grid to another, special tokens as is.

    Args:
      before, after: (rows, columns) of patches.
    """
    if before == after:
        return table
    special = len(table) - before[0] * before[1]
    grid = np.asarray(table[special:], np.float64).reshape(*before, -1)
    resample = antialiased_matrix if antialias else bicubic_matrix
    rows, columns = resample(before[0], after[0]), resample(before[1], after[1])
    grid = np.einsum("ir,jc,rcw->ijw", rows, columns, grid)
    return np.concatenate([table[:special], grid.reshape(after[0] * after[1], -1).astype(table.dtype)])
