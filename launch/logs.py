"""WORKDIR/log.txt, and how long each phase of a job took."""

import contextlib
import logging
import pathlib
import shlex
import sys
import time

from psaq_jax.errors import InputError

LOG = logging.getLogger("launch")


@contextlib.contextmanager
def logged(workdir: pathlib.Path):
    """While the block runs, WORKDIR/log.txt takes the command, what `LOG` is told, every warning, and how it ended."""
    try:
        handler = _LogFile(workdir / "log.txt", encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"{workdir / 'log.txt'}: cannot be written ({error.strerror}); remove it") from None
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    loggers = (logging.getLogger(), LOG)
    LOG.setLevel(logging.INFO)
    LOG.propagate = False  # not to the console: it has bars and a table
    for logger in loggers:
        logger.addHandler(handler)
    try:
        LOG.info("%s", shlex.join(sys.argv))
        yield
        LOG.info("finished")
    except SystemExit as ended:  # of a signal, behind the last checkpoint
        LOG.info("stopped with exit code %s; the same command goes on from here", ended.code)
        raise
    except KeyboardInterrupt:
        LOG.info("stopped by Ctrl-C; the same command goes on from here")
        raise
    except BaseException as error:
        LOG.error("ended by %s: %s", type(error).__name__, error)
        raise
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        with contextlib.suppress(OSError):
            handler.close()


class _LogFile(logging.FileHandler):
    """A log on a full disk ends; what the job has to say of it is on the console."""

    def handleError(self, record):
        pass


class Stopwatch:
    """Wall seconds by phase: call it at the end of each; phases of the same name add up."""

    def __init__(self):
        self.seconds, self._last = {}, time.monotonic()

    def __call__(self, phase: str) -> None:
        now = time.monotonic()
        spent, self._last = now - self._last, now
        self.seconds[phase] = self.seconds.get(phase, 0.0) + spent
        LOG.info("%s: %.1f s", phase, spent)
