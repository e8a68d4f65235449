"""The one exception for what a user can mend: bad files, fields and settings."""


class InputError(ValueError):
    """Bad input. The message is one line: the file or field, what was found, what was expected, what to do.

    Scripts in `launch/` print it without a traceback and exit with code 2.
    """
