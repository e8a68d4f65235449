"""Optional packages, imported where they are used."""

import importlib
import sys
import types
from collections.abc import Callable
from typing import Any

from psaq_jax.errors import InputError


class MissingExtra(InputError):
    """An optional package is not installed."""


def require(module: str, extra: str) -> types.ModuleType:
    """Imports an optional module, such as "matplotlib.figure" of the extra "report".

    Raises:
      MissingExtra: it is not installed; the message names the extra and the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise MissingExtra(f"{package}: cannot be imported ({error}); install it {how_to_install(extra)}") from None


def how_to_install(extra: str) -> str:
    """The package is on no index: what installs an extra of it."""
    return f'in its repository with: {sys.executable} -m pip install ".[{extra}]"'


def written(write: Callable[[], Any]) -> Any:
    """What `write` gives, such as the path of a page; where a package is missing for it, the words that say so, for a
    job that has its results without.
    """
    try:
        return write()
    except MissingExtra as error:
        return f"not written, {error}"
