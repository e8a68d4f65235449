"""How a script ends: what went wrong in one line on the console, with an exit code."""

import contextlib
import errno
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable

from psaq_jax import distributed, progress
from psaq_jax.errors import InputError, reason_of
from psaq_jax.text_tables import one_line

OUT_OF_MEMORY = re.compile("out of memory|failed to allocate|exceeds .*memory", re.IGNORECASE)  # in XLA's errors


def in_one_line(main: Callable[[], None]) -> None:
    """Runs `main`. What a user can mend is one line and the error's exit code (2; 75: try again), and so are Ctrl-C
    (130) and an output that nobody reads (141); all else is a traceback.
    """
    try:
        with _memory():
            main()
        sys.stdout.flush()
    except InputError as error:
        fail(error)
    except KeyboardInterrupt:
        _end("stopped by Ctrl-C", 128 + signal.SIGINT)
    except RuntimeError as error:
        if not str(error).startswith("Unable to initialize backend"):
            raise
        found = f"JAX_PLATFORMS is {os.environ.get('JAX_PLATFORMS', '')!r}"
        fail(InputError(f"{found}: {reason_of(error)}; correct it or leave it out"))
    except BrokenPipeError:  # nobody reads what is printed, as behind `| head`
        _drop_output()
        _end("stopped: nobody reads the output any more", 128 + signal.SIGPIPE)
    except OSError as error:
        if not _is_full(error):
            raise
        _drop_output()
        fail(InputError(f"a disk is full ({error}); free some space and start the same command again"))


def with_others(main: Callable[[], None]) -> None:
    """One process speaks; none waits for one that failed: it leaves at once, and its connection tells the others."""
    if not distributed.is_first():
        sys.stdout = open(os.devnull, "w")
    try:
        with _memory():
            main()
    except (InputError, KeyboardInterrupt, BrokenPipeError):
        raise
    except SystemExit:  # after a signal all leave together
        distributed.finish()
        raise
    except BaseException as error:
        if _is_full(error):
            raise
        traceback.print_exc()
        distributed.fail(1)
    distributed.finish()


def fail(error: InputError) -> None:
    _end(one_line(f"error: {' '.join(str(error).split())}"), error.code)


@contextlib.contextmanager
def _memory():
    """A device or host without enough memory for what was asked for."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        found = reason_of(error)
        if not isinstance(error, MemoryError) and not OUT_OF_MEMORY.search(found):
            raise
        less = "take fewer images at once (batch_size, synthesis.group_size), or a smaller model or image_size"
        raise InputError(f"memory is not enough ({found or 'of the host'}); {less}") from None


def _is_full(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _drop_output() -> None:
    """What is still buffered, and could only fail once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _end(line: str, code: int) -> None:
    progress.say(line)
    if distributed.is_started():
        distributed.fail(code)  # an ordinary exit waits for the others
    sys.exit(code)
