"""Checked access to the fields of a config.json: what is wrong is named in one line, nothing guessed."""

from collections.abc import Mapping
from typing import Any

from psaq_jax.errors import InputError

# The most that a field may declare: generous, and small enough that a damaged file cannot fill the memory.
LARGEST_IMAGE = 4096  # pixels a side
LARGEST_WIDTH = 16384  # channels, heads
LARGEST_HIDDEN = 131072
DEEPEST = 1000  # blocks of a stage
# An artefact's config.json has the labels up to three times, and `files.LARGEST_JSON` bytes must hold it.
MOST_CLASSES = 100_000
LONGEST_LABELS = 2**22  # bytes of all of them, as JSON
MOST_STAGES = 16
LARGEST_WINDOW = 64


def is_whole(value, least: int, most: int) -> bool:
    """Whether it is an int (not a bool) in these bounds."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


class Fields:
    """The fields of one JSON object.

    Every method takes a field's name and returns its value, or raises InputError that says where it is
    (`where`, such as "DIR: config.json's model_args"), what was found and what was expected.
    """

    def __init__(self, values: Mapping[str, Any], where: str):
        self.values, self.where = values, where

    def error(self, name: str, expected: str) -> InputError:
        hint = "correct it, or take the config.json that belongs to the weights"
        return InputError(f"{self._found(name)}, expected {expected}; {hint}")

    def unsupported(self, name: str, models: str) -> InputError:
        """Of a field that may well be right."""
        return InputError(f"{self._found(name)}; {models} are not supported, take another model")

    def uncovered(self, name: str, expected: str) -> InputError:
        """Of a field that may well be right, but for the values that are covered."""
        return InputError(f"{self._found(name)}, expected {expected}: others are not supported, take another model")

    def _found(self, name: str) -> str:
        found = repr(self.values[name]) if name in self.values else "missing"
        found = found if len(found) <= 80 else found[:77] + "..."
        return f"{self.where} has {name} = {' '.join(found.split())}"

    def whole(self, name: str, most: int, least: int = 1) -> int:
        """A whole number from `least` to `most`."""
        if not is_whole(self.values.get(name), least, most):
            raise self.error(name, f"a whole number from {least} to {most}")
        return self.values[name]

    def wholes(self, name: str, most: int) -> tuple[int, ...]:
        """A list of whole numbers from 1 to `most`, not empty."""
        value = self.values.get(name)
        if (
            not isinstance(value, list | tuple)
            or not 1 <= len(value) <= MOST_STAGES
            or not all(is_whole(v, 1, most) for v in value)
        ):
            raise self.error(name, f"a list of whole numbers from 1 to {most}, one a stage")
        return tuple(value)

    def pair(self, name: str) -> tuple[int, int]:
        """Pixels, or a window's patches: a whole number, or two, (height, width), each from 1 to LARGEST_IMAGE."""
        value = self.values.get(name)
        value = tuple(value) if isinstance(value, list | tuple) else (value, value)
        if len(value) != 2 or not all(is_whole(v, 1, LARGEST_IMAGE) for v in value):
            raise self.error(name, f"a whole number from 1 to {LARGEST_IMAGE}, or two (height, width)")
        return value

    def positive(self, name: str, most: float) -> float:
        """A finite number above 0, up to `most`."""
        value = self.values.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most:
            raise self.error(name, f"a positive number up to {most}")
        return float(value)

    def flag(self, name: str) -> bool:
        value = self.values.get(name)
        if not isinstance(value, bool):
            raise self.error(name, "true or false")
        return value

    def object(self, name: str) -> Mapping[str, Any]:
        """An object of fields."""
        value = self.values.get(name)
        if not isinstance(value, Mapping):
            raise self.error(name, "an object")
        return value

    def choice(self, name: str, choices) -> str:
        """One of these strings."""
        value = self.values.get(name)
        if not isinstance(value, str) or value not in choices:
            raise self.uncovered(name, f"one of {', '.join(choices)}")
        return value

    def hidden(self, width: int) -> int:
        """int(width · mlp_ratio), the hidden width of a block."""
        hidden = int(width * self.positive("mlp_ratio", LARGEST_HIDDEN))
        if not 1 <= hidden <= LARGEST_HIDDEN:
            raise self.error("mlp_ratio", f"a ratio that makes a hidden width from 1 to {LARGEST_HIDDEN} of {width}")
        return hidden
