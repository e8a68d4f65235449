"""Who works in a bucket's folder: an object `.lock` that its owner rewrites as a sign of life.

Whoever finds one waits `LOCK_LIFE` seconds: if it changed, its owner is alive and the second run is refused; if not,
the owner was killed and the second run takes over. An owner that was only cut off finds its lock lost.
"""

import contextlib
import os
import sys
import threading
import time
import uuid

from psaq_jax.errors import InputError, TryAgain

LOCK_LIFE = 45.0
# Errors of the network, by their names or their bases': Python's, requests', aiohttp's, botocore's, google.auth's,
# azure.core's.
NETWORK = {
    "ConnectionError", "TimeoutError", "Timeout", "gaierror", "ClientConnectionError", "ClientPayloadError",
    "HTTPClientError", "TransportError", "ServiceRequestError", "ServiceResponseError",
}  # fmt: skip
SETTLE = 2.0  # seconds in which two runs that start at once see each other's lock


class Lock:
    """The lock of one run on a folder, which it does not have before `take`."""

    def __init__(self, fs, root: str, url: str):
        self.fs, self.path, self.url = fs, f"{root}/.lock", url
        self._owner = f"{os.uname().nodename} {os.getpid()} {uuid.uuid4().hex}"
        self._signing = threading.Lock()  # file:// empties what it rewrites: nobody here may look meanwhile

    def take(self) -> None:
        """Takes the folder, or raises InputError where another run is at work."""
        with reported(self.url):
            found = self._read()
            if found:
                print(f"{self.url}: found a lock, waiting {LOCK_LIFE:.0f} s for its sign of life", file=sys.stderr)
                time.sleep(LOCK_LIFE)
            if not found or self._read() in (found, b""):
                self._write()
                time.sleep(SETTLE)
            owner = self._read()
        if not self._is_own(owner):
            who = _who(owner)
            raise InputError(f"--workdir={self.url}: another run is at work there ({who}); wait or choose another")

    def sign(self) -> None:
        """A sign of life, unless another run has taken the folder."""
        with reported(self.url), self._signing:
            if self._is_own(self._read()):
                self._write()

    def release(self) -> None:
        """Removes the lock, if it is this run's."""
        with contextlib.suppress(Exception):  # whatever happened before is what matters
            if self._is_own(self._read()):
                self.fs.rm_file(self.path)

    def check(self) -> None:
        """Raises InputError where another run has taken the folder."""
        with self._signing:
            owner = self._read()
        if not self._is_own(owner):
            raise InputError(
                f"--workdir={self.url}: the lock there is {_who(owner)}'s, expected this run's; another run took over "
                "from it, so it copies nothing more; once the other has ended, start the same command again"
            )

    def _is_own(self, owner: bytes) -> bool:
        return owner.startswith(self._owner.encode())

    def _write(self) -> None:
        self.fs.pipe_file(self.path, f"{self._owner} {uuid.uuid4().hex}".encode())

    def _read(self) -> bytes:
        return read(self.fs, self.path)


def read(fs, path: str) -> bytes:
    """An object's content; empty where there is none."""
    try:
        return fs.cat_file(path)
    except FileNotFoundError:
        return b""


def _who(owner: bytes) -> str:
    """Host and process of a lock's owner."""
    return " ".join(owner.decode(errors="replace").split()[:2]) or "nobody"


@contextlib.contextmanager
def reported(url: str):
    """What a bucket's client raises (each has its own exceptions) as InputError; TryAgain where the network failed."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        if _may_pass(error):
            raise TryAgain(f"{url}: cannot be reached now ({reason}); start the same command again") from None
        raise InputError(f"{url}: cannot be used ({reason}); check its name and your rights") from None


def _may_pass(error: Exception) -> bool:
    """Whether the same call may work later. A status that a server gave says more than the exception's kind."""
    for holder, name in ((error, "code"), (error, "status"), (getattr(error, "response", None), "status_code")):
        status = getattr(holder, name, None)
        if isinstance(status, int) and status >= 400:
            return status >= 500 or status == 429  # too many requests
    return not NETWORK.isdisjoint(kind.__name__ for kind in type(error).__mro__)
