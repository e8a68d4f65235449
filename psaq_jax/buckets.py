"""Work folders in a bucket (gs://, s3://, anything that fsspec knows): a local copy, kept in step while a job runs.

Jobs write local files, which appear whole by renaming; a thread copies what is new to the bucket, where an object
appears whole too. Which objects belong together (a checkpoint is several) says the object `.index.json`, written last:
a run that goes on fetches what the index lists and never sees half a checkpoint.

One run at a time has the folder (`bucket_lock`), and says so every `EVERY` seconds, also while it copies. A run that
was cut off and finds the folder taken copies nothing more.
"""

import contextlib
import json
import os
import pathlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

from psaq_jax import temporary
from psaq_jax.bucket_lock import Lock, read, reported
from psaq_jax.errors import InputError, TryAgain
from psaq_jax.extras import how_to_install

EVERY = 15.0  # seconds between copies, and between the lock's signs of life
PAUSES = 1.0, 5.0, 15.0  # seconds between attempts to copy what a job ends with
INDEX = ".index.json"


def is_url(path) -> bool:
    return "://" in str(path)


def open_bucket(url: str):
    """(fsspec file system, path in it) of a folder or object.

    Raises:
      InputError: nothing behind "://", a scheme that nothing here knows, or one whose package is missing.
    """
    import fsspec

    if not url.partition("://")[2].strip("/"):
        raise InputError(f"{url}: found nothing behind ://, expected gs://BUCKET/PATH; name the folder")
    options = {"auto_mkdir": True} if url.startswith("file:") else {}
    try:
        return fsspec.core.url_to_fs(url.rstrip("/"), use_listings_cache=False, **options)
    except ImportError as error:
        raise InputError(f"{url}: {error}; psaq_jax installs it {how_to_install('cloud')}") from None
    except ValueError as error:
        raise InputError(f"{url}: {error}; expected a folder, or gs://BUCKET/PATH") from None


def write(url: str, writer: Callable[[pathlib.Path], None]) -> str:
    """Calls `writer(temporary local path)` and copies the file to `url`, where it appears whole.

    Raises:
      InputError: no space for the local file, or the bucket fails.
    """
    fs, path = open_bucket(url)
    with temporary.folder() as folder:
        local = folder / url.rpartition("/")[2]
        try:
            writer(local)
        except OSError as error:
            found = f"{folder}: cannot be written ({error.strerror or error})"
            raise InputError(f"{found}; free some space there, or name another folder by TMPDIR") from None
        with reported(url):
            fs.put_file(str(local), path)
    return url


@contextlib.contextmanager
def local_copy(url: str) -> Iterator[pathlib.Path]:
    """A local folder with what the bucket's folder holds; what changes in it goes there, until the block ends.

    What the block prints to standard output, and its InputErrors, name the bucket's files in place of their copies
    here, which end with it.

    Raises:
      InputError: another run is at work there or took over from this one, the bucket cannot be reached or written, or
        its index names files outside the folder.
    """
    with temporary.folder() as folder:
        mirror = Mirror(url, folder)
        try:
            mirror.lock.take()
            with _repeated(mirror.lock.sign):
                mirror.fetch()
                try:
                    with _repeated(mirror.push), _named(folder, url):
                        yield folder
                except BaseException:
                    with contextlib.suppress(InputError):  # the first error is what matters
                        mirror.push_last(PAUSES[:2])  # a machine that is taken away waits for no more
                    raise
                mirror.push_last(PAUSES)
            print(f"  copied to {url}")
        finally:
            mirror.lock.release()


class Mirror:
    """A folder of a bucket and its local copy."""

    def __init__(self, url: str, folder: pathlib.Path):
        self.url, self.folder = url, folder
        self.fs, self.root = open_bucket(url)
        self._sent: dict[str, tuple[int, int]] = {}  # {name: (time of change in ns, bytes)}
        self.lock = Lock(self.fs, self.root, url)

    def fetch(self) -> None:
        with reported(self.url):
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
        with reported(self.url):
            for _ in range(5):
                listing = self._listing()
                with contextlib.suppress(FileNotFoundError):  # a checkpoint that a newer one replaced meanwhile
                    for name, state in listing.items():
                        if self._sent.get(name) != state:
                            self.lock.check()
                            self.fs.put_file(str(self.folder / name), f"{self.root}/{name}")
                            self._sent[name] = state
                if listing == self._listing() and all(self._sent.get(name) == s for name, s in listing.items()):
                    self._write_index(listing)
                    return

    def push_last(self, pauses: tuple[float, ...]) -> None:
        """`push`, again after some seconds where the network fails: nobody comes after it."""
        for seconds in pauses:
            try:
                return self.push()
            except TryAgain:
                time.sleep(seconds)
        self.push()

    def _write_index(self, listing) -> None:
        before = self._index()
        self.lock.check()
        self.fs.pipe_file(f"{self.root}/{INDEX}", json.dumps(sorted(listing)).encode())
        for name in (set(before) | self._sent.keys()) - set(listing):  # sent, but gone before any index had it, too
            self._sent.pop(name, None)
            with contextlib.suppress(FileNotFoundError):
                self.fs.rm_file(f"{self.root}/{name}")

    def _index(self) -> list[str]:
        """The files that belong together. Who may write to the bucket writes these names, so none is trusted.

        Raises:
          InputError: what is there is no list of files inside the folder.
        """
        content = read(self.fs, f"{self.root}/{INDEX}") or b"[]"
        try:
            names = json.loads(content)
        except (ValueError, RecursionError):
            names = content
        bad = [name for name in names if not _is_inside(name)] if isinstance(names, list) else [names]
        if bad:
            raise InputError(
                f"{self.url}/{INDEX}: found {bad[0]!r:.80}, expected names of files inside the folder; "
                "remove that object to start anew, or choose another --workdir"
            )
        return names

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


@contextlib.contextmanager
def _named(folder: pathlib.Path, url: str):
    """Puts `url` in the place of `folder` in what the block prints and in its errors."""
    names = str(folder), url.rstrip("/")
    try:
        with contextlib.redirect_stdout(_Renaming(sys.stdout, *names)):
            yield
    except InputError as error:
        error.args = (str(error).replace(*names),)
        raise


class _Renaming:
    """A stream that writes one name for another."""

    def __init__(self, stream, *names: str):
        self._stream, self._names = stream, names

    def write(self, text: str) -> int:
        return self._stream.write(text.replace(*self._names))

    def __getattr__(self, name):
        return getattr(self._stream, name)


def _is_inside(name) -> bool:
    """Whether a folder joined with `name` is a place in it, on any system: Windows' rules forbid the others' too."""
    path = pathlib.PureWindowsPath(name if isinstance(name, str) else "")
    return bool(path.parts) and not path.anchor and ".." not in path.parts
