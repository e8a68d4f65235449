"""What was computed before a kill: trees of arrays in a folder, named by a digest of all that they were made from."""

import hashlib
import pathlib
import zipfile
from collections.abc import Callable

import jax
import numpy as np

from psaq_jax import files


def finished(folder: pathlib.Path | None, settings: str, inputs, like, compute: Callable):
    """`compute()`, or what it gave for the same settings and bits of the inputs before, if the folder has it.

    Args:
      inputs: any tree of arrays; like: a tree of the result's structure, shapes and dtypes.
      folder: None: nothing is kept.
    """
    if folder is None:
        return compute()
    path = folder / f"{_digest(settings, inputs)}.npz"
    found = _read(path, like)
    if found is None:
        found = compute()
        files.write(path, lambda file: np.savez(file, *jax.tree.leaves(found)))
    return found


def _digest(settings: str, inputs) -> str:
    """SHA-256 of a text and of every bit of a tree."""
    found = hashlib.sha256(settings.encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(inputs):
        leaf = np.ascontiguousarray(leaf)
        found.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode())
        found.update(leaf)
    return found.hexdigest()


def _read(path: pathlib.Path, like):
    """None where there is no such tree that can be read."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            leaves = [archive[name] for name in archive]
    except (OSError, ValueError, zipfile.BadZipFile):
        return None
    expected, structure = jax.tree.flatten(like)
    fits = [(x.shape, x.dtype) for x in leaves] == [(x.shape, x.dtype) for x in expected]
    return jax.tree.unflatten(structure, leaves) if fits else None
