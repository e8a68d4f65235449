"""Optional packages, imported where they are used."""

import importlib
import types

from psaq_jax.errors import InputError


def require(module: str, extra: str) -> types.ModuleType:
    """Imports an optional module, such as "matplotlib.figure" of the extra "report".

    Raises:
      InputError: it is not installed; the message names the extra and the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise InputError(
            f'{package}: cannot be imported ({error}); install it with: pip install "psaq_jax[{extra}]"'
        ) from None
