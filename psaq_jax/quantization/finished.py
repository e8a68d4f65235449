"""What was computed before a kill: trees of arrays in a folder, named by a checksum of all that they were made from."""

import pathlib
from collections.abc import Callable

from psaq_jax import resumption
from psaq_jax.checksums import checksum


def finished(folder: pathlib.Path | None, settings: str, inputs, like, compute: Callable):
    """`compute()`, or what it gave for the same settings and bits of the inputs before, if the folder has it whole.

    Args:
      inputs: any tree of arrays; like: a tree of the result's structure, shapes and dtypes.
      folder: None: nothing is kept.
    """
    if folder is None:
        return compute()
    path = folder / f"{checksum(inputs, settings)}.npz"
    found = resumption.read_tree(path, like)
    if found is None:
        found = compute()
        resumption.write_tree(path, found)
    return found
