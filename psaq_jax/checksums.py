"""SHA-256 of every bit of trees of arrays, of files and of JSON: what comes back from a disk is what was written."""

import hashlib
import json
import pathlib

import jax
import numpy as np

NAME = "sha256"


def checksum(tree, settings: str = "") -> str:
    """SHA-256 of a text and of every bit of a tree, its dtypes and shapes included."""
    found = hashlib.sha256(settings.encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        leaf = np.ascontiguousarray(leaf)
        found.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode())
        found.update(leaf)
    return found.hexdigest()


def of_file(path: pathlib.Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def of_json(value) -> str:
    """SHA-256 of what JSON can hold, however it is laid out."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def add(tree: dict) -> dict:
    """The tree with its checksum as one more array."""
    return tree | {NAME: np.frombuffer(bytes.fromhex(checksum(tree)), np.uint8)}


def remove(tree: dict) -> dict | None:
    """The opposite of `add`; None where the tree is not the one that was added to."""
    rest = {name: value for name, value in tree.items() if name != NAME}
    kept = np.asarray(tree.get(NAME, ())).tobytes().hex()
    return rest if kept == checksum(rest) else None
