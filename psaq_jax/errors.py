"""The exception for what a user can mend: bad files, fields and settings; and for what mends itself, maybe."""


class InputError(ValueError):
    """Bad input. The message is one line: the file or field, what was found, what was expected, what to do.

    Scripts in `launch/` print it without a traceback and exit with `code`.
    """

    code = 2


class TryAgain(InputError):
    """What may work a little later, such as a network disk that fails: the exit code is sysexits.h's "try again"."""

    code = 75


def one_line(error: BaseException) -> str:
    """The reason that another library gives, fit for one line of ours."""
    return " ".join(str(error).split())[:300]
