"""The exception for what a user can mend: bad files, fields and settings; and for what mends itself, maybe."""

import contextlib
import os
from collections.abc import Iterator


class InputError(ValueError):
    """Bad input. The message is one line: the file or field, what was found, what was expected, what to do.

    Scripts in `launch/` print it without a traceback and exit with `code`.
    """

    code = 2


class TryAgain(InputError):
    """What may work a little later, such as a network disk that fails: the exit code is sysexits.h's "try again"."""

    code = 75


class Unreadable(InputError):
    """What the system cannot read now, and may well be whole: the file and the reason, apart from the line."""

    def __init__(self, path: str | os.PathLike, reason: str, hint: str):
        super().__init__(f"{path}: cannot be read ({reason}); {hint}")
        self.path, self.reason = path, reason


def reason_of(error: BaseException) -> str:
    """The reason that another library gives, fit for one line of ours."""
    return " ".join(str(error).split())[:300]


def first(items: list[str], count: int = 6) -> str:
    """The first few as one line, and how many more there are."""
    more = f" and {len(items) - count} more" if len(items) > count else ""
    return ", ".join(items[:count]) + more


@contextlib.contextmanager
def reading(path: str | os.PathLike) -> Iterator[None]:
    """Inside, the system's errors at what the user named become one line.

    Raises:
      Unreadable: missing, or no right to read it.
    """
    try:
        yield
    except OSError as error:
        hint = "correct the path, or who may read it"
        raise Unreadable(str(error.filename or path)[:300], error.strerror or str(error), hint) from None
