"""Position embeddings at another resolution, as in transformers: torch's bicubic, align_corners=False."""

import numpy as np

CUBIC = -0.75  # torch's coefficient; Pillow's and the antialiased variant use -0.5


def bicubic_matrix(before: int, after: int) -> np.ndarray:
    """[after, before] float64: bicubic resampling of a row of samples, borders repeated, no antialiasing."""
    matrix = np.zeros((after, before))
    centres = (np.arange(after) + 0.5) * before / after - 0.5
    first = np.floor(centres).astype(int)
    for tap in range(-1, 3):
        distance = np.abs(centres - (first + tap))
        near = (CUBIC + 2) * distance**3 - (CUBIC + 3) * distance**2 + 1
        far = CUBIC * (distance**3 - 5 * distance**2 + 8 * distance - 4)
        np.add.at(
            matrix,
            (np.arange(after), np.clip(first + tap, 0, before - 1)),
            np.where(distance <= 1, near, far),
        )
    return matrix


def interpolate(table: np.ndarray, before: tuple[int, int], after: tuple[int, int]) -> np.ndarray:
    """Position embeddings [special + rows·columns, c] from one patch grid to another, special tokens as is.

    Args:
      before, after: (rows, columns) of patches.
    """
    if before == after:
        return table
    special = len(table) - before[0] * before[1]
    grid = np.asarray(table[special:], np.float64).reshape(*before, -1)
    rows, columns = bicubic_matrix(before[0], after[0]), bicubic_matrix(before[1], after[1])
    grid = np.einsum("ir,jc,rcw->ijw", rows, columns, grid)
    return np.concatenate([table[:special], grid.reshape(after[0] * after[1], -1).astype(table.dtype)])
