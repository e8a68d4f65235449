"""Files by which a job goes on where an earlier run of it ended: each has a checksum, and what has changed since is
not there. What the system cannot read now may well be whole: that ends the job, and nothing is removed.
"""

import errno
import logging
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import BinaryIO

import jax
import numpy as np

from psaq_jax import checksums, files
from psaq_jax.errors import InputError, TryAgain, Unreadable


def unreadable(path: str | os.PathLike, reason: str) -> TryAgain:
    """The error for what may well be whole, but that the system cannot read now."""
    return TryAgain(f"{path}: cannot be read ({reason}); nothing was removed: start the same command again")


def warn_damaged(path: pathlib.Path) -> None:
    """Says in one line why a run begins further back than it was."""
    logging.getLogger(__name__).warning("%s: is missing or damaged; what needs it is made again, bit for bit", path)


def open_if_there(path: pathlib.Path) -> BinaryIO | None:
    """A file that the caller can make again, to read; None where there is none (but a folder, a pipe).

    Raises:
      TryAgain: it cannot be opened now (a failing network disk, no right to).
    """
    try:
        files.check_regular(path)
        return path.open("rb")
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno is None:
            return None
        raise unreadable(path, error.strerror) from None


def write_figures(path, figures: dict) -> pathlib.Path:
    """A JSON object and its checksum: for `read_figures`."""
    return files.write_json(path, figures | {checksums.NAME: checksums.of_json(figures)})


def read_figures(path: pathlib.Path) -> dict | None:
    """What `write_figures` wrote; None where there is no such file, or any figure has changed.

    Raises:
      TryAgain: the system fails to read it.
    """
    figures = read_json_if_whole(path) or {}
    kept = figures.pop(checksums.NAME, None)
    return figures if kept == checksums.of_json(figures) else None


def read_json_if_whole(path: pathlib.Path) -> dict | None:
    """What `files.read_json` gives of a file that the caller can make again; None where it is missing or damaged.

    Raises:
      TryAgain: the system fails to read it.
    """
    try:
        return files.read_json(path, "it is made again")
    except Unreadable as error:
        raise unreadable(error.path, error.reason) from None
    except InputError:
        return None


def write_npz(path, arrays: Mapping[str, np.ndarray]) -> pathlib.Path:
    """Arrays by name, and their checksum: for `read_npz`."""
    return files.write(path, lambda temporary: np.savez(temporary, **checksums.add(dict(arrays))))


def read_npz(path: pathlib.Path) -> dict[str, np.ndarray] | None:
    """What `write_npz` wrote; None where there is no such file, or any bit of it has changed.

    Raises:
      TryAgain: as `open_if_there`, or the system fails while it reads.
    """
    file = open_if_there(path)
    if file is None:
        return None
    try:
        with file, np.load(file, allow_pickle=False) as archive:
            return checksums.remove(dict(archive))
    except files.DAMAGED_NPZ as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # EINVAL: a place before the start
            raise unreadable(path, error.strerror) from None
        return None


def write_tree(path, tree) -> pathlib.Path:
    """The arrays of a tree, and their checksum: for `read_tree`."""
    return write_npz(path, {f"{i:05d}": leaf for i, leaf in enumerate(jax.tree.leaves(tree))})


def read_tree(path: pathlib.Path, like):
    """What `write_tree` wrote; None where `read_npz` has none, or where it is no tree such as `like`: of its
    structure, shapes and dtypes.

    Raises:
      TryAgain: as `read_npz`.
    """
    leaves = list((read_npz(path) or {}).values())
    expected, structure = jax.tree.flatten(like)
    if [(x.shape, x.dtype) for x in leaves] == [(x.shape, x.dtype) for x in expected]:
        return jax.tree.unflatten(structure, leaves)
    return None


def finished(folder: pathlib.Path | None, settings: str, inputs, like, compute: Callable):
    """`compute()`, or what it gave for the same settings and bits of the inputs before, if the folder has it whole: it
    is named by their checksum.

    Args:
      inputs: any tree of arrays; like: a tree of the result's structure, shapes and dtypes.
      folder: None: nothing is kept.
    """
    if folder is None:
        return compute()
    path = folder / f"{checksums.checksum(inputs, settings)}.npz"
    found = read_tree(path, like)
    if found is None:
        found = compute()
        write_tree(path, found)
    return found
