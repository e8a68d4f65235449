"""Temporary folders that go with their process, also where `end_process` ends it; killed by a signal it leaves them."""

import contextlib
import os
import pathlib
import shutil
import tempfile
import threading
from collections.abc import Iterator
from typing import NoReturn

_folders: set[str] = set()
_ending = threading.Lock()


@contextlib.contextmanager
def folder() -> Iterator[pathlib.Path]:
    """A folder that is removed after the block."""
    with tempfile.TemporaryDirectory(prefix="psaq_jax-") as name:
        _folders.add(name)
        try:
            yield pathlib.Path(name)
        finally:
            _folders.discard(name)


def is_ending() -> bool:
    """Whether `end_process` was called: what lies in the folders from then on is not what a job wrote."""
    return _ending.locked()


def end_process(code: int) -> NoReturn:
    """Ends the process out of any thread, with no block left, but without its folders."""
    _ending.acquire()  # for ever: a thread that finds its folder gone has no say in the exit code
    for name in list(_folders):
        shutil.rmtree(name, ignore_errors=True)
    os._exit(code)
