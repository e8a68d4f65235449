"""Checks of single settings, each with one line for what is wrong; `field` is the setting's name in messages."""

import numpy as np

from psaq_jax.errors import InputError


def check_choice(field: str, value, known) -> None:
    if value not in known:
        raise InputError(f"{field} is {value!r}, known are {', '.join(known)}")


def check_least(field: str, value, least) -> None:
    if value < least:
        raise InputError(f"{field} is {value!r}, expected at least {least}")


def check_whole(field: str, value, least: int, most: int | None = None) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):
        expected = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise InputError(f"{field} is {value!r}, expected a whole number {expected}")


def check_weight(field: str, value) -> None:
    if not 0 <= value < float("inf"):
        raise InputError(f"{field} is {value!r}, expected a number of at least 0")


def check_seed(seed, field: str = "seed") -> None:
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**31:
        raise InputError(f"{field} is {seed!r}, expected a whole number from 0 to 2147483647")
