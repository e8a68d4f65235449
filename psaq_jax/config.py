"""The settings of a job as a frozen, checked value. ConfigDicts stop at `launch/`."""

import dataclasses
import difflib
import re
from collections.abc import Mapping
from typing import Any

from psaq_jax.errors import InputError
from psaq_jax.quantization.quantizers import check_bits
from psaq_jax.quantization.recipes import RECIPES
from psaq_jax.synthesis.config import SynthesisConfig

CALIBRATIONS = ("synthesized", "noise", "real")
DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class QuantizationConfig:
    """Which quantized models to make: every recipe at every bit-width.

    Attributes:
      bits: such as ("w8a8", "w4a8"): weights 2 to 8, activations 4 to 8.
      recipe: a name, or several separated by commas.
    """

    bits: tuple[str, ...] = ("w8a8", "w4a8")
    recipe: str = "paper"

    def __post_init__(self):
        bits = (self.bits,) if isinstance(self.bits, str) else tuple(self.bits)
        object.__setattr__(self, "bits", bits)
        if not bits:
            raise InputError("quantization.bits is empty, expected settings such as ('w8a8', 'w4a8')")
        for setting in bits:
            parse_bits(setting)
        for name in self.recipes:
            if name not in RECIPES:
                raise InputError(f"quantization.recipe is {name!r}, known are {', '.join(RECIPES)}")

    @property
    def recipes(self) -> tuple[str, ...]:
        return tuple(name.strip() for name in self.recipe.split(","))


@dataclasses.dataclass(frozen=True)
class JobConfig:
    """The main job's settings; DESIGN §4 names them.

    Attributes:
      model: source for `load_model`.
      data: data set spec, or "" for none.
      calibration: which calibration sets, out of synthesized, noise and real.
      dtype: of the synthesis' passes.
      data_errors: "stop" at a broken image of the data set, or "skip" it.
      data_workers: processes that decode images; 0: none.
      class_index, labels_file: of folder: data sets; see `psaq_jax.data.load_dataset`.
    """

    model: str
    data: str = ""
    seed: int = 0
    batch_size: int = 250
    dtype: str = "float32"
    data_errors: str = "stop"
    data_workers: int = 0
    class_index: str = ""
    labels_file: str = ""
    calibration: tuple[str, ...] = CALIBRATIONS
    synthesis: SynthesisConfig = dataclasses.field(default_factory=SynthesisConfig)
    quantization: QuantizationConfig = dataclasses.field(default_factory=QuantizationConfig)

    def __post_init__(self):
        wanted = (self.calibration,) if isinstance(self.calibration, str) else tuple(self.calibration)
        object.__setattr__(self, "calibration", wanted)
        for name in wanted:
            _choice("calibration", name, CALIBRATIONS)
        if not wanted:
            raise InputError(f"calibration is empty, expected some of {', '.join(CALIBRATIONS)}")
        _choice("dtype", self.dtype, DTYPES)
        _choice("data_errors", self.data_errors, ("stop", "skip"))
        if self.batch_size < 1:
            raise InputError(f"batch_size is {self.batch_size}, expected at least 1")
        if not 0 <= self.seed < 2**31:
            raise InputError(f"seed is {self.seed}, expected a whole number from 0 to 2147483647")


def _choice(field: str, value, known) -> None:
    if value not in known:
        raise InputError(f"{field} is {value!r}, known are {', '.join(known)}")


def parse_bits(setting: str) -> tuple[int, int]:
    """ "w4a8" -> (4, 8): bits of the weights and of the activations.

    Raises:
      InputError: another form, or impossible bits.
    """
    match = re.fullmatch(r"w(\d+)a(\d+)", str(setting))
    if not match:
        raise InputError(f"quantization.bits has {setting!r}, expected a form such as 'w4a8'")
    weights, activations = int(match[1]), int(match[2])
    return (
        check_bits(weights, f"quantization.bits {setting!r}: weight bits"),
        check_bits(activations, f"quantization.bits {setting!r}: activation bits"),
    )


def from_mapping(cls: type, values: Mapping[str, Any], prefix: str = "config"):
    """A dataclass from nested mappings.

    Raises:
      InputError: unknown fields, with the nearest known name; missing ones; values of another type.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for name in values:
        if name not in fields:
            raise InputError(unknown_field(f"{prefix}.{name}", name, fields))
    arguments = {}
    for name, field in fields.items():
        if name not in values:
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                raise InputError(f"{prefix}.{name} is missing; {cls.__name__} needs it")
            continue
        value = values[name]
        nested = dataclasses.is_dataclass(field.type)
        if nested and not isinstance(value, Mapping):
            raise InputError(f"{prefix}.{name} is {value!r}, expected its own fields")
        if not nested and field.type in (int, str) and not isinstance(value, field.type):
            raise InputError(f"{prefix}.{name} is {value!r}, expected {field.type.__name__}")
        arguments[name] = from_mapping(field.type, value, f"{prefix}.{name}") if nested else value
    return cls(**arguments)


def unknown_field(path: str, name: str, known) -> str:
    """The message for a field that nothing knows, with the nearest name that something does."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
    return f"{path} is not a known field; {hint}"
