"""What the scripts in `launch/` share: the flags, the config that they read, and `run`, in which each starts; and what
fills the fields of `configs/`.
"""

import dataclasses
import io
import logging
import math
import os
import pathlib
import re
import shlex
import sys
import typing
from collections.abc import Callable

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import ConfigDict, config_dict, config_flags

from launch import endings
from psaq_jax import config, distributed
from psaq_jax.distillation.config import DistillationConfig
from psaq_jax.errors import InputError, reason_of
from psaq_jax.quantization.recipes import DefaultRecipe
from psaq_jax.synthesis.config import SynthesisConfig

CHECKPOINT_SECONDS = flags.DEFINE_float("checkpoint_seconds", 60, "Time between checkpoints of a synthesis.", 0)
flags.register_validator("checkpoint_seconds", math.isfinite, "expected a number of seconds")
QUIET = flags.DEFINE_bool("quiet", False, "No progress bars, only what comes at the end.")
DISTRIBUTED = flags.DEFINE_enum(
    "distributed", "auto", distributed.MODES, "Share the work with other processes (auto: where a cluster is found)."
)
ADDRESS = flags.DEFINE_string("coordinator_address", None, "HOST:PORT of process 0, where no cluster tells it.")
PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes share the work.")
PROCESS = flags.DEFINE_integer("process_id", None, "Which of them this is.")


def synthesis_fields(**changes) -> ConfigDict:
    """The fields of `SynthesisConfig`, with its defaults and these changes; None may be overridden by a value."""
    return _fields(SynthesisConfig, changes)


def recipe_fields(**changes) -> ConfigDict:
    """The fields of `DefaultRecipe`, with its defaults and these changes; None may be overridden by a value."""
    return _fields(DefaultRecipe, changes)


def distillation_fields(**changes) -> ConfigDict:
    """The fields of `DistillationConfig`, with its defaults and these changes."""
    return _fields(DistillationConfig, changes)


def _fields(kind: type, changes) -> ConfigDict:
    kind(**changes)  # which checks them, and makes values of None that are not to be written down here
    found = {field.name: changes.get(field.name, field.default) for field in dataclasses.fields(kind)}
    types = {field.name: typing.get_args(field.type) for field in dataclasses.fields(kind)}
    return ConfigDict({k: config_dict.placeholder(types[k][0]) if v is None else v for k, v in found.items()})


def define_config() -> flags.FlagHolder:
    """The flag --config=configs/X.py, every field of which can be overridden as --config.a.b=value."""
    return config_flags.DEFINE_config_file("config", None, "The recipe: a file in configs/.")


def read_job(holder: flags.FlagHolder, kind: type = config.JobConfig, expected: str = "configs/NAME.py"):
    """The config flag's value as a checked `JobConfig`, or another kind of settings; `expected` is for the error."""
    if not isinstance(holder.value, ConfigDict):
        found = "--config is missing"
        if holder.present:
            name = config_flags.get_config_filename(flags.FLAGS[holder.name])
            found = f"--config={name}: there is no such file"
        raise InputError(f"{found}, expected --config={expected}")
    return config.from_mapping(kind, holder.value.to_dict())


def command() -> str:
    """What was typed, for the reports."""
    return f"python -m launch.{pathlib.Path(sys.argv[0]).stem} {shlex.join(sys.argv[1:])}"


def run(main: Callable[[], None], several: bool = False) -> None:
    """Parses the flags and runs `main`. Bad input ends with one line on the console and exit code 2; see
    `endings`.

    `several`: whether several processes can share the job's work.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or open(os.devnull, "w")  # none where it is closed, as by 2>&-
        if isinstance(stream, io.TextIOWrapper):  # a terminal may know ASCII alone
            stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, stream)
    if sys.flags.optimize:
        found = "Python runs with -O (PYTHONOPTIMIZE), where Flax's interceptors leak tracers"
        endings.fail(InputError(f"{found}; leave it out"))
    absl_logging.set_verbosity(absl_logging.WARNING)  # the checkpoint library tells every step of every save
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.WARNING)  # "no TPU found" is no news to anybody
    try:
        app.run(lambda _: endings.in_one_line(lambda: _together(main, several)), flags_parser=_parse)
    except InputError as error:
        endings.fail(error)


def _together(main, several: bool) -> None:
    """`main`, in one of several processes where flags or a cluster say so."""
    distributed.start(DISTRIBUTED.value, ADDRESS.value, PROCESSES.value, PROCESS.value)
    if distributed.count() == 1:
        main()
    elif several:
        endings.with_others(main)
    else:
        raise InputError(f"found {distributed.count()} processes, this job works in one; give --distributed=off")


def _parse(argv):
    try:
        rest = flags.FLAGS(argv)
    except flags.Error as error:  # what a config file raises has its traceback before it
        text = re.sub(r"Error whilst parsing config file:.*\n[\w.]+: ", "", str(error), flags=re.DOTALL)
        raise InputError(text) from None
    except (AttributeError, KeyError) as error:
        raise InputError(_unknown_override(argv, error)) from None
    except Exception as error:  # whatever a user's config file raises
        found = f"{type(error).__name__}: {reason_of(error)}"
        raise InputError(f"--config cannot be loaded ({found}); expected a file as in configs/") from None
    if len(rest) > 1:
        raise InputError(f"argument {rest[1]!r} is not a flag; flags start with --")
    return rest


def _unknown_override(argv, error: Exception) -> str:
    """The --config.a.b=value that the config file has no field for, with the nearest name.

    `error` tells b alone, so all that end so are named.
    """
    text = str(error).replace("\\n", " ").replace("\\", "")  # a KeyError shows its text quoted
    name, near = re.search(r"'(\w+)'", text), re.search(r'Did you mean "(\w+)"', text)
    given = dict.fromkeys(argument.split("=")[0].lstrip("-") for argument in argv)
    found = [flag for flag in given if name and re.search(rf"\.{name[1]}\b", flag)]
    if not found:
        return f"--config cannot be loaded ({' '.join(text.split())}); expected a file as in configs/"
    hint = f"did you mean {near[1]!r}?" if near else "the config file lists what there is"
    return f"{' or '.join(found)} is not a known field; {hint}"
