"""Work folders in a bucket (gs://, s3://, anything that fsspec knows): a local copy, kept in step while a job runs.

Jobs write local files, which appear whole by renaming; a thread copies what is new to the bucket, where an object
appears whole too. Which objects belong together (a checkpoint is several) says the object `.index.json`, written last:
a run that goes on fetches what the index lists and never sees half a checkpoint.

The lock is an object that its owner rewrites every `EVERY` seconds. Whoever finds one waits `LOCK_LIFE` seconds: if it
changed, its owner is alive and the second run is refused; if not, the owner was killed and the second run takes over.
"""

import contextlib
import json
import os
import pathlib
import shutil
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator

from psaq_jax.errors import InputError

EVERY = 15.0  # seconds between copies, and between the lock's signs of life
LOCK_LIFE = 45.0
SETTLE = 2.0  # seconds in which two runs that start at once see each other's lock
INDEX, LOCK = ".index.json", ".lock"


def is_url(path) -> bool:
    return "://" in str(path)


def open_bucket(url: str):
    """(fsspec file system, path in it) of a folder or object.

    Raises:
      InputError: a scheme that nothing here knows, or whose package is missing.
    """
    import fsspec

    options = {"auto_mkdir": True} if url.startswith("file:") else {}
    try:
        return fsspec.core.url_to_fs(url.rstrip("/"), use_listings_cache=False, **options)
    except ImportError as error:
        raise InputError(f'{url}: {error}; for gs:// that is pip install "psaq_jax[cloud]"') from None
    except ValueError as error:
        raise InputError(f"{url}: {error}; expected a folder, or gs://BUCKET/PATH") from None


def write(url: str, writer: Callable[[pathlib.Path], None]) -> str:
    """Calls `writer(temporary local path)` and copies the file to `url`, where it appears whole."""
    fs, path = open_bucket(url)
    with tempfile.TemporaryDirectory() as folder:
        local = pathlib.Path(folder, url.rpartition("/")[2])
        writer(local)
        with _reported(url):
            fs.put_file(str(local), path)
    return url


@contextlib.contextmanager
def local_copy(url: str) -> Iterator[pathlib.Path]:
    """A local folder with what the bucket's folder holds; what changes in it goes there, until the block ends.

    Raises:
      InputError: another run is at work there, or the bucket cannot be reached or written.
    """
    mirror = Mirror(url)
    mirror.lock()
    try:
        mirror.fetch()
        stop = threading.Event()
        thread = threading.Thread(target=mirror.keep, args=(stop,), daemon=True)
        thread.start()
        try:
            yield mirror.folder
        except BaseException:
            with contextlib.suppress(InputError):  # the first error is what matters
                mirror.push()
            raise
        finally:
            stop.set()
            thread.join()
        mirror.push()
        print(f"  copied to {url}")
    finally:
        mirror.unlock()
        shutil.rmtree(mirror.folder, ignore_errors=True)


class Mirror:
    """A folder of a bucket and its local copy."""

    def __init__(self, url: str):
        self.url = url
        self.fs, self.root = open_bucket(url)
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="psaq_jax-"))
        self._sent: dict[str, tuple[int, int]] = {}  # {name: (time of change in ns, bytes)}
        self._owner = f"{os.uname().nodename} {os.getpid()} {uuid.uuid4().hex}"

    def fetch(self) -> None:
        with _reported(self.url):
            index = self._read(INDEX)
            for name in json.loads(index) if index else ():
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                self.fs.get_file(f"{self.root}/{name}", str(self.folder / name))
            self._sent = self._listing()

    def push(self) -> None:
        """Copies what is new, then the index, then removes what is gone.

        While files keep coming and going the bucket keeps its last index: a later call brings it up to date.
        """
        with _reported(self.url):
            for _ in range(5):
                listing = self._listing()
                with contextlib.suppress(FileNotFoundError):  # a checkpoint that a newer one replaced meanwhile
                    for name, state in listing.items():
                        if self._sent.get(name) != state:
                            self.fs.put_file(str(self.folder / name), f"{self.root}/{name}")
                            self._sent[name] = state
                if listing == self._listing() and all(self._sent.get(name) == s for name, s in listing.items()):
                    self._write_index(listing)
                    return

    def _write_index(self, listing) -> None:
        before = self._read(INDEX)
        self.fs.pipe_file(f"{self.root}/{INDEX}", json.dumps(sorted(listing)).encode())
        for name in set(json.loads(before) if before else ()) - set(listing):
            self._sent.pop(name, None)
            with contextlib.suppress(FileNotFoundError):
                self.fs.rm_file(f"{self.root}/{name}")

    def keep(self, stop: threading.Event) -> None:
        """Signs of life and copies until `stop`. What fails is tried again; the last copy reports it."""
        while not stop.wait(EVERY):
            with contextlib.suppress(InputError):
                if self._read(LOCK).startswith(self._owner.encode()):
                    self._sign()
                    self.push()

    def lock(self) -> None:
        """Takes the folder, or raises InputError where another run is at work."""
        with _reported(self.url):
            found = self._read(LOCK)
            if found:
                print(f"{self.url}: found a lock, waiting {LOCK_LIFE:.0f} s for its sign of life", file=sys.stderr)
                time.sleep(LOCK_LIFE)
            if not found or self._read(LOCK) in (found, b""):
                self._sign()
                time.sleep(SETTLE)
            owner = self._read(LOCK)
        if not owner.startswith(self._owner.encode()):
            name = " ".join(owner.decode().split()[:2])
            raise InputError(f"--workdir={self.url}: another run is at work there ({name}); wait or choose another")

    def unlock(self) -> None:
        with contextlib.suppress(Exception):  # whatever happened before is what matters
            if self._read(LOCK).startswith(self._owner.encode()):
                self.fs.rm_file(f"{self.root}/{LOCK}")

    def _sign(self) -> None:
        self.fs.pipe_file(f"{self.root}/{LOCK}", f"{self._owner} {uuid.uuid4().hex}".encode())

    def _read(self, name: str) -> bytes:
        """An object's content; empty where there is none."""
        try:
            return self.fs.cat_file(f"{self.root}/{name}")
        except FileNotFoundError:
            return b""

    def _listing(self) -> dict[str, tuple[int, int]]:
        """The files that are whole: not hidden, not in a checkpoint that is being written."""
        found = {}
        for folder, folders, names in os.walk(self.folder):
            folders[:] = [name for name in folders if not name.startswith(".") and "orbax-checkpoint-tmp" not in name]
            for name in names:
                path = pathlib.Path(folder, name)
                with contextlib.suppress(FileNotFoundError):
                    state = path.stat()
                    if not name.startswith("."):
                        found[path.relative_to(self.folder).as_posix()] = (state.st_mtime_ns, state.st_size)
        return found


@contextlib.contextmanager
def _reported(url: str):
    """What a bucket's client raises (each has exceptions of its own) as InputError."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{url}: cannot be used ({reason}); check its name and your rights") from None
