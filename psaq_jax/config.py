"""The settings of a job as a frozen, checked value. ConfigDicts stop at `launch/`."""

import dataclasses
import difflib
import re
import typing
from collections.abc import Mapping
from typing import Any

from psaq_jax.checks import check_choice, check_seed, check_type, check_whole, fits
from psaq_jax.errors import InputError
from psaq_jax.quantization.quantizers import check_bits
from psaq_jax.quantization.recipes import DefaultRecipe, read_recipe
from psaq_jax.synthesis.config import SynthesisConfig

CALIBRATIONS = ("synthesized", "noise", "real")
DTYPES = ("float32", "bfloat16")
BITS = re.compile(r"(?:w(?P<weights>\d+)|auto:(?P<budget>\d+(?:\.\d+)?))a(?P<activations>\d+)", re.ASCII)
FLOAT_BITS = 32  # activations of "w4a32" are floats
DISTILL = "distill"  # as results name the recipe "default" trained afterwards


def without_training(recipe: str) -> str:
    """The recipe that a run's quantized model was made by before any distillation."""
    return "default" if recipe == DISTILL else recipe


class AverageBits(float):
    """Mixed precision: how many bits a weight may have on average."""


@dataclasses.dataclass(frozen=True)
class QuantizationConfig:
    """Which quantized models to make: every recipe at every bit-width.

    Attributes:
      bits: such as ("w8a8", "w4a8", "w4a32", "auto:4.5a8"): weights 2 to 8, activations 2 to 8, or 32: floating point;
        "auto:" is mixed precision, that many bits a weight on average ("auto:4.5" means "auto:4.5a8").
      recipe: a name, or several separated by commas; "default-gptq" is "default" without that ingredient,
        "default+learn_rounding" with one that it leaves out.
      options: of recipe "default".
    """

    bits: tuple[str, ...] = ("w8a8", "w4a8")
    recipe: str = "paper"
    options: DefaultRecipe = dataclasses.field(default_factory=DefaultRecipe)

    def __post_init__(self):
        bits = (self.bits,) if isinstance(self.bits, str) else tuple(self.bits)
        bits = tuple(f"{b}a8" if re.fullmatch(r"auto:[0-9.]+", str(b)) else b for b in bits)
        if not bits:
            raise InputError("quantization.bits is empty, expected settings such as ('w8a8', 'w4a8')")
        object.__setattr__(self, "bits", tuple(dict.fromkeys(map(plain_bits, bits))))
        for name in self.recipes:
            self.check_recipe(name)

    @property
    def recipes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name.strip() for name in self.recipe.split(",")))

    def check_recipe(self, name: str) -> None:
        """Raises InputError for a recipe that the job does not know."""
        if name == DISTILL:
            raise InputError(
                "quantization.recipe 'distill' is for launch.sweep alone; launch.distill trains what 'default' makes"
            )
        read_recipe(name)


@dataclasses.dataclass(frozen=True)
class JobConfig:
    """The main job's settings.

    Attributes:
      model: source for `load_model`; "hard:SOURCE": a copy with outlier channels (`hard_copies`), the same function.
      image_size: pixels to run the model at; 0: the checkpoint's own size.
      revision: branch, tag or commit of a hub id; "": its main one.
      data: data set spec, or "" for none.
      calibration: which calibration sets, out of synthesized, noise and real.
      dtype: of the synthesis' passes.
      data_errors: "stop" at a broken image of the data set, or "skip" it.
      data_workers: processes that decode images; 0: none.
      class_index, labels_file: of folder: data sets; see `psaq_jax.data.load_dataset`.
    """

    model: str
    image_size: int = 0
    revision: str = ""
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
        given = (self.calibration,) if isinstance(self.calibration, str) else self.calibration
        parts = [names.split(",") if isinstance(names, str) else [names] for names in given]
        wanted = [name.strip() if isinstance(name, str) else name for names in parts for name in names]
        for name in wanted:
            check_choice("calibration", name, CALIBRATIONS)
        object.__setattr__(self, "calibration", tuple(dict.fromkeys(wanted)))
        if not wanted:
            raise InputError(f"calibration is empty, expected some of {', '.join(CALIBRATIONS)}")
        if set(wanted) == {"real"} and not self.data:
            raise InputError("calibration is ('real',) and data is '': nothing to calibrate on; give one or the other")
        for name in ("model", "data"):
            object.__setattr__(self, name, plain_source(getattr(self, name)))
        check_choice("dtype", self.dtype, DTYPES)
        check_choice("data_errors", self.data_errors, ("stop", "skip"))
        for name, least in (("batch_size", 1), ("image_size", 0), ("data_workers", 0)):
            check_whole(name, getattr(self, name), least)
        check_seed(self.seed)

    def identity(self, model, dataset=None) -> dict[str, Any]:
        """What a run's folder belongs to: every setting that its results depend on, the model and the data.

        Not `data_errors`: of data with a broken image "stop" has no results. Nor `data_workers`, which change nothing.
        """
        settings = {k: v for k, v in dataclasses.asdict(self).items() if k not in ("data_workers", "data_errors")}
        contents = {"data_contents": dataset.identity()} if dataset is not None else {}
        return settings | {"model_fingerprint": model.fingerprint()} | contents


def plain_source(name: str) -> str:
    """The one way to write a folder, which runs are told apart by: "DIR", not "DIR/" as shells complete it."""
    plain = name.rstrip("/")
    return name if not plain or plain.endswith(":") else plain  # "/", "folder:/"


def parse_bits(setting: str, field: str = "quantization.bits") -> tuple[int | AverageBits, int | None]:
    """ "w4a8" -> (4, 8): bits of the weights and of the activations; "w4a32" -> (4, None): activations are floats;
    "auto:4.5a8" -> (AverageBits(4.5), 8): mixed precision.

    Raises:
      InputError: another form, or impossible bits.
    """
    match, where = BITS.fullmatch(str(setting)), f"{field} {setting!r}"
    if not match:
        raise InputError(f"{field} has {setting!r}, expected a form such as 'w4a8', 'w4a32' or 'auto:4.5a8'")
    activations = int(match["activations"])
    if activations == FLOAT_BITS:
        activations = None
    else:
        check_bits(activations, f"{where}: activation bits (32: floating point)")
    if match["budget"] is None:
        return check_bits(int(match["weights"]), f"{where}: weight bits"), activations
    if not 2 <= float(match["budget"]) <= 8:
        raise InputError(f"{where}: the average is {match['budget']}, expected 2 to 8 bits a weight")
    return AverageBits(match["budget"]), activations


def plain_bits(setting: str) -> str:
    """The one way to write a setting, which results are named by: "auto:4.50a08" -> "auto:4.5a8"."""
    weights, activations = parse_bits(setting)
    budget = f"auto:{weights!r}".removesuffix(".0") if isinstance(weights, AverageBits) else f"w{weights}"
    return f"{budget}a{activations or FLOAT_BITS}"


def has_whole_bits(setting: str, field: str = "quantization.bits") -> bool:
    """Whether weights and activations have one whole number of bits each: no mixed precision, no floating point."""
    weights, activations = parse_bits(setting, field)
    return not isinstance(weights, AverageBits) and activations is not None


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
        if dataclasses.is_dataclass(field.type):
            if not isinstance(value, Mapping):
                raise InputError(f"{prefix}.{name} is {value!r}, expected its own fields")
            arguments[name] = from_mapping(field.type, value, f"{prefix}.{name}")
            continue
        if typing.get_args(field.type)[1:] == (...,) and fits((value,), field.type):
            value = (value,)
        arguments[name] = check_type(f"{prefix}.{name}", value, field.type)
    return cls(**arguments)


def unknown_field(path: str, name: str, known) -> str:
    """The message for a field that nothing knows, with the nearest name that something does."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
    return f"{path} is not a known field; {hint}"
