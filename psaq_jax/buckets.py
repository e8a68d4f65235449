"""Work folders in a bucket (gs://, s3://, anything that fsspec knows): a local copy, kept in step while a job runs.

Jobs write local files, which appear whole by renaming; a thread copies what is new to the bucket, where an object
appears whole too. Which objects belong together (a checkpoint is several) says the object `.index.json`, written last:
a run that goes on fetches what the index lists and never sees half a checkpoint.

The lock is an object that its owner rewrites every `EVERY` seconds, also while it copies. Whoever finds one waits
`LOCK_LIFE` seconds: if it changed, its owner is alive and the second run is refused; if not, the owner was killed and
the second run takes over. An owner that was only cut off finds its lock lost and copies nothing more.
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
      InputError: another run is at work there or took over from this one, the bucket cannot be reached or written, or
        its index names files outside the folder.
    """
    mirror = Mirror(url)
    try:
        mirror.lock()
        with _repeated(mirror.sign):
            mirror.fetch()
            try:
                with _repeated(mirror.push):
                    yield mirror.folder
            except BaseException:
                with contextlib.suppress(InputError):  # the first error is what matters
                    mirror.push()
                raise
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
        self._signing = threading.Lock()  # file:// empties what it rewrites: nobody here may look meanwhile

    def fetch(self) -> None:
        with _reported(self.url):
            for name in self._index():
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                self.fs.get_file(f"{self.root}/{name}", str(self.folder / name))
            self._sent = self._listing()

    def push(self) -> None:
        """Copies what is new, then the index, then removes what is gone.

        While files keep coming and going the bucket keeps its last index: a later call brings it up to date.

        Raises:
          InputError: the bucket fails, or another run has taken the folder: what lies there is that run's work.
        """
        with _reported(self.url):
            for _ in range(5):
                listing = self._listing()
                with contextlib.suppress(FileNotFoundError):  # a checkpoint that a newer one replaced meanwhile
                    for name, state in listing.items():
                        if self._sent.get(name) != state:
                            self._check_owner()
                            self.fs.put_file(str(self.folder / name), f"{self.root}/{name}")
                            self._sent[name] = state
                if listing == self._listing() and all(self._sent.get(name) == s for name, s in listing.items()):
                    self._write_index(listing)
                    return

    def _write_index(self, listing) -> None:
        before = self._index()
        self._check_owner()
        self.fs.pipe_file(f"{self.root}/{INDEX}", json.dumps(sorted(listing)).encode())
        for name in set(before) - set(listing):
            self._sent.pop(name, None)
            with contextlib.suppress(FileNotFoundError):
                self.fs.rm_file(f"{self.root}/{name}")

    def _index(self) -> list[str]:
        """The files that belong together. Who may write to the bucket writes these names, so none is trusted.

        Raises:
          InputError: what is there is no list of files inside the folder.
        """
        content = self._read(INDEX) or b"[]"
        try:
            names = json.loads(content)
        except ValueError:
            names = content
        bad = [name for name in names if not _is_inside(name)] if isinstance(names, list) else [names]
        if bad:
            raise InputError(
                f"{self.url}/{INDEX}: found {bad[0]!r:.80}, expected names of files inside the folder; "
                "remove that object to start anew, or choose another --workdir"
            )
        return names

    def lock(self) -> None:
        """Takes the folder, or raises InputError where another run is at work."""
        with _reported(self.url):
            found = self._read(LOCK)
            if found:
                print(f"{self.url}: found a lock, waiting {LOCK_LIFE:.0f} s for its sign of life", file=sys.stderr)
                time.sleep(LOCK_LIFE)
            if not found or self._read(LOCK) in (found, b""):
                self._write_lock()
                time.sleep(SETTLE)
            owner = self._read(LOCK)
        if not self._is_own(owner):
            who = _who(owner)
            raise InputError(f"--workdir={self.url}: another run is at work there ({who}); wait or choose another")

    def sign(self) -> None:
        """A sign of life, unless another run has taken the folder."""
        with _reported(self.url), self._signing:
            if self._is_own(self._read(LOCK)):
                self._write_lock()

    def unlock(self) -> None:
        with contextlib.suppress(Exception):  # whatever happened before is what matters
            if self._is_own(self._read(LOCK)):
                self.fs.rm_file(f"{self.root}/{LOCK}")

    def _check_owner(self) -> None:
        with self._signing:
            owner = self._read(LOCK)
        if not self._is_own(owner):
            raise InputError(
                f"--workdir={self.url}: the lock there is {_who(owner)}'s, expected this run's; another run took over "
                "from it, so it copies nothing more; once the other has ended, start the same command again"
            )

    def _is_own(self, owner: bytes) -> bool:
        return owner.startswith(self._owner.encode())

    def _write_lock(self) -> None:
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
def _repeated(action: Callable[[], None]):
    """Calls `action` every `EVERY` seconds in a thread until the block ends. What fails is tried again."""
    stop = threading.Event()

    def repeat():
        while not stop.wait(EVERY):
            with contextlib.suppress(InputError):
                action()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _is_inside(name) -> bool:
    """Whether a folder joined with `name` is a place in it, on any system: Windows' rules forbid the others' too."""
    path = pathlib.PureWindowsPath(name if isinstance(name, str) else "")
    return bool(path.parts) and not path.anchor and ".." not in path.parts


def _who(owner: bytes) -> str:
    """Host and process of a lock's owner."""
    return " ".join(owner.decode(errors="replace").split()[:2]) or "nobody"


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
