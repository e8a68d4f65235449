"""What the scripts in `launch/` share: the config flag, one-line errors with exit code 2, progress bars."""

import dataclasses
import logging
import re
import sys
from collections.abc import Callable

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import ConfigDict, config_dict, config_flags
from tqdm import tqdm

from psaq_jax import config
from psaq_jax.errors import InputError
from psaq_jax.synthesis.config import SynthesisConfig

CHECKPOINT_SECONDS = flags.DEFINE_float("checkpoint_seconds", 60, "Time between checkpoints of a synthesis.")
QUIET = flags.DEFINE_bool("quiet", False, "No progress bars, only what comes at the end.")


def synthesis_fields(**changes) -> ConfigDict:
    """The fields of `SynthesisConfig`, with its defaults and these changes; None may be overridden by a number."""
    fields = dataclasses.asdict(SynthesisConfig(**changes))
    return ConfigDict({k: config_dict.placeholder(float) if v is None else v for k, v in fields.items()})


def define_config() -> flags.FlagHolder:
    """The flag --config=configs/X.py, every field of which can be overridden as --config.a.b=value."""
    return config_flags.DEFINE_config_file("config", None, "The recipe: a file in configs/.")


def read_job(holder: flags.FlagHolder, kind: type = config.JobConfig):
    """The config flag's value as a checked `JobConfig`, or another kind of it."""
    if not isinstance(holder.value, ConfigDict):
        given = next((a for a in sys.argv if re.match("--?config=", a)), "no --config")
        raise InputError(f"{given}: there is no such file, expected --config=configs/NAME.py")
    return config.from_mapping(kind, holder.value.to_dict())


def run(main: Callable[[], None]) -> None:
    """Parses the flags and runs `main`. Bad input ends with one line on the console and exit code 2."""
    absl_logging.set_verbosity(absl_logging.WARNING)  # the checkpoint library tells every step of every save
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.WARNING)  # "no TPU found" is no news to anybody
    try:
        app.run(lambda _: _one_line(main), flags_parser=_parse)
    except InputError as error:
        _fail(error)


def _one_line(main):
    try:
        main()
    except InputError as error:
        _fail(error)


def _fail(error) -> None:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(2)


def _parse(argv):
    try:
        rest = flags.FLAGS(argv)
    except flags.Error as error:
        raise InputError(str(error)) from None
    except (AttributeError, KeyError) as error:
        raise InputError(_unknown_override(argv, error)) from None
    except (OSError, ImportError, SyntaxError, ValueError, TypeError) as error:
        raise InputError(f"--config cannot be loaded ({error}); expected a file as in configs/") from None
    if len(rest) > 1:
        raise InputError(f"argument {rest[1]!r} is not a flag; flags start with --")
    return rest


def _unknown_override(argv, error: Exception) -> str:
    """The --config.a.b=value that the config file has no field for, with the nearest name, which `error` tells."""
    text = str(error).replace("\\n", " ").replace("\\", "")  # a KeyError shows its text quoted
    name, near = re.search(r"'(\w+)'", text), re.search(r'Did you mean "(\w+)"', text)
    flag = next((a.split("=")[0] for a in argv if name and re.search(rf"\.{name[1]}\b", a.split("=")[0])), None)
    if flag is None:
        return f"--config cannot be loaded ({' '.join(text.split())}); expected a file as in configs/"
    hint = f"did you mean {near[1]!r}?" if near else "the config file lists what there is"
    return f"{flag.lstrip('-')} is not a known field; {hint}"


def bar(title: str):
    """A progress bar, or None under --quiet."""
    return None if QUIET.value else ProgressBar(title)


class ProgressBar:
    """A bar with an estimate of what is left: call it with (done, in all)."""

    def __init__(self, title: str):
        self.title, self.bar = title, None

    def __call__(self, done: int, total: int) -> None:
        if self.bar is None:
            self.bar = tqdm(total=total, desc=self.title, leave=True, dynamic_ncols=True)
        self.bar.update(done - self.bar.n)
        if done >= total:
            self.bar.close()
