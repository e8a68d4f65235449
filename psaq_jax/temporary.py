"""Temporary folders that go with their process, however it ends."""

import contextlib
import pathlib
import secrets
import subprocess
import tempfile
from collections.abc import Iterator

AFTER = 'read _; exec rm -rf -- "$0"'  # of a shell: there is nothing to read until who started it is gone


@contextlib.contextmanager
def folder() -> Iterator[pathlib.Path]:
    """A folder that is removed after the block, also where the process is killed inside: by one that waits for that."""
    path = pathlib.Path(tempfile.gettempdir(), f"psaq_jax-{secrets.token_hex(8)}")
    quiet = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(["sh", "-c", AFTER, path], **quiet, start_new_session=True):
        path.mkdir(mode=0o700)
        yield path
