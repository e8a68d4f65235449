"""Checks of single settings, each with one line for what is wrong; `field` is the setting's name in messages."""

import dataclasses
import numbers
import os
import pathlib
import types
import typing
from typing import Any

import numpy as np

from psaq_jax.errors import InputError

LARGEST_WEIGHT = 1e6  # of a term of a loss, far beyond use


def check_choice(field: str, value, known) -> None:
    if value not in known:
        raise InputError(f"{field} is {value!r}, known are {', '.join(known)}")


def check_whole(field: str, value, least: int, most: int | None = None) -> int:
    """The number as Python's own, which does not wrap around as NumPy's may."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):
        expected = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise InputError(f"{field} is {value!r}, expected a whole number {expected}")
    return int(value)


def check_weight(field: str, value) -> None:
    if not 0 <= value <= LARGEST_WEIGHT:
        raise InputError(f"{field} is {value!r}, expected a number from 0 to {LARGEST_WEIGHT}")


def check_seed(seed, field: str = "seed") -> None:
    check_whole(field, seed, 0, 2**31 - 1)


def check_folder_path(field: str, directory) -> pathlib.Path:
    """The path of a folder of this machine, its ~ expanded; scripts alone take buckets."""
    text = os.path.expanduser(str(directory)) if isinstance(directory, str | os.PathLike) else ""
    if not text or "://" in text or "\0" in text:
        raise InputError(f"{field} is {directory!r}, expected the path of a folder here")
    return pathlib.Path(text)


def check_types(prefix: str, settings) -> None:
    """Of every field of a dataclass, so that later checks may compare them; NumPy's numbers become Python's."""
    for field in dataclasses.fields(settings):
        if isinstance(value := getattr(settings, field.name), np.generic):
            object.__setattr__(settings, field.name, value.item())
        check_type(f"{prefix}.{field.name}", getattr(settings, field.name), field.type)


def check_type(field: str, value, kind) -> Any:
    """The value, where it is what an annotation says; see `fits`."""
    if not fits(value, kind):
        raise InputError(f"{field} is {value!r}, expected {kind.__name__ if isinstance(kind, type) else kind}")
    return value


def fits(value, kind) -> bool:
    """Whether a value is what an annotation says: bool, int, float, str, None, tuple[...], X | Y.

    Any real number is a float, numpy's too, and a list a tuple; True is no number.
    """
    origin, kinds = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return any(fits(value, one) for one in kinds)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            return False
        kinds = kinds[:1] * len(value) if kinds[1:] == (...,) else kinds
        return len(value) == len(kinds) and all(map(fits, value, kinds))
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, numbers.Real if kind is float else kind)
