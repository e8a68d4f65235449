"""Checks of single settings: the ends of what they take, and what they make of it."""

import dataclasses
import pathlib

import numpy as np
import pytest

from psaq_jax.checks import check_folder_path, check_seed, check_types, check_weight, check_whole, fits
from psaq_jax.errors import InputError


@pytest.mark.parametrize("value", [0, 0.0, 1e-30, 1e6])
def test_a_weight_may_be_zero_and_a_million(value):
    check_weight("weight", value)


@pytest.mark.parametrize("value", [-1e-30, 1e6 + 1, float("nan"), float("inf")])
def test_a_weight_beyond_is_named(value):
    with pytest.raises(InputError, match="weight is .*, expected a number from 0 to 1000000"):
        check_weight("weight", value)


def test_a_seed_is_what_int32_holds():
    check_seed(0)
    check_seed(2**31 - 1)
    for seed in (-1, 2**31, 1.0, True):
        with pytest.raises(InputError, match=f"^seed is {seed}, expected a whole number from 0 to 2147483647$"):
            check_seed(seed)


@pytest.mark.parametrize("value, least, most", [(3, 3, 5), (5, 3, 5), (10**9, 3, None)])
def test_whole_numbers_up_to_both_ends(value, least, most):
    assert check_whole("n", value, least, most) == value


@pytest.mark.parametrize("value, most", [(2, None), (6, 5), (True, None), (4.0, None), ("4", None)])
def test_other_numbers_are_named_with_the_ends(value, most):
    expected = "of at least 3" if most is None else "from 3 to 5"
    with pytest.raises(InputError, match=f"^n is {value!r}, expected a whole number {expected}$"):
        check_whole("n", value, 3, most)


def test_numpys_whole_numbers_become_pythons():
    """Which do not wrap around: 200 + 100 is 44 of uint8."""
    assert check_whole("n", np.uint8(200), 1) + np.uint16(100) == 300
    assert type(check_whole("n", np.uint8(200), 1)) is int


def test_settings_of_numpy_become_pythons():
    @dataclasses.dataclass(frozen=True)
    class Settings:
        rate: float
        count: int

    settings = Settings(np.float32(0.5), np.int64(3))
    check_types("settings", settings)
    assert settings == Settings(0.5, 3) and [type(x) for x in dataclasses.astuple(settings)] == [float, int]


@pytest.mark.parametrize(
    "value, kind, expected",
    [
        ((1.0, 2), tuple[float, float], True), ((1.0,), tuple[float, float], False), ([1, 2], tuple[int, int], True),
        ((), tuple[float, ...], True), ((1.0, "2"), tuple[float, ...], False), ("ab", tuple[str, ...], False),
        (True, int, False), (True, bool, True), (1, bool, False), (1, float, True), (1.0, int, False),
        (None, float | None, True), (None, float, False), (np.float32(1), float, True),
    ],
)  # fmt: skip
def test_what_fits_an_annotation(value, kind, expected):
    assert fits(value, kind) == expected


def test_a_folder_may_begin_at_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert check_folder_path("folder", "~/runs") == pathlib.Path("/home/me/runs")
    assert check_folder_path("folder", pathlib.Path("runs")) == pathlib.Path("runs")
