"""How long work tells how far it is, and how what else is said on the console keeps clear of its bars."""

import contextlib
import sys
from collections.abc import Callable

Progress = Callable[[int, int], None]  # called with (done, in all)
Bars = Callable[[str], Progress | None]  # title -> what is called

open_bars: set = set()  # those whose line on the console has not ended


def say(line: str) -> None:
    """The last line on the console (stderr), below bars that are still open, which end. It may get lost: where nobody
    reads it any more, or where it goes to a full disk.
    """
    with contextlib.suppress(OSError):
        while open_bars:
            open_bars.pop().close()
        print(line, file=sys.stderr, flush=True)
