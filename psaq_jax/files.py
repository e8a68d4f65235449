"""Files that appear whole or not at all: written beside their place, then renamed onto it."""

import errno
import json
import os
import pathlib
import stat
import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Mapping

import numpy as np

from psaq_jax import buckets
from psaq_jax.errors import InputError, Unreadable, reason_of

LARGEST_JSON = 2**24  # bytes
UNFINISHED = ".unfinished-"  # begins the names of what is not yet in its place
# What zipfile, and NumPy on the headers inside, raise on damaged bytes.
DAMAGED_NPZ = (
    OSError, EOFError, ValueError, KeyError, TypeError, OverflowError, MemoryError, RuntimeError, SyntaxError,
    zipfile.BadZipFile, zlib.error, tokenize.TokenError,
)  # fmt: skip


def write(path: str | os.PathLike, writer: Callable[[pathlib.Path], None]) -> pathlib.Path:
    """Calls `writer(temporary path)` in the file's own folder, then renames onto `path` (the folder is made).

    The temporary name ends like the real one, so that writers that look at the suffix see it. `path` may be a URL
    (gs://...).

    Raises:
      InputError: no right to write, no space, or a folder that is a file.
    """
    if buckets.is_url(path):
        return buckets.write(str(path), writer)
    path = pathlib.Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=UNFINISHED, suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = pathlib.Path(name)
        writer(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_UMASK)
        temporary.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
    return path


def _unwritable(path, error: OSError) -> InputError:
    full = error.errno in (None, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # none: of another library
    action = "free some space or choose another folder" if full else "choose another folder"
    return InputError(f"{path}: cannot be written ({error.strerror or error}); {action}")


def write_in_turn(folder: pathlib.Path, contents: Mapping[str, bytes]) -> list[pathlib.Path]:
    """Writes files that belong together, {name: content}; none where there is no room for all."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        check_space(folder, sum(map(len, contents.values())))
    except OSError as error:
        raise _unwritable(folder, error) from None
    return [write_bytes(folder / name, content) for name, content in contents.items()]


def check_space(folder: str | os.PathLike, size: int) -> None:
    """Takes `size` bytes in a folder and gives them back, where the system can: before a writer that breaks badly.

    Raises:
      OSError: no space, or a limit of this process.
    """
    if hasattr(os, "posix_fallocate"):
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, max(size, 1))


def write_bytes(path, content: bytes) -> pathlib.Path:
    return write(path, lambda temporary: temporary.write_bytes(content))


def write_text(path, text: str) -> pathlib.Path:
    return write_bytes(path, encoded(text))


def encoded(text: str) -> bytes:
    """UTF-8; what it has no code for, as labels and files' names may hold, as JSON escapes it."""
    return text.encode(errors="backslashreplace")


def write_json(path, value) -> pathlib.Path:
    return write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def check_regular(path: pathlib.Path) -> os.stat_result:
    """Of a file that is about to be read: a pipe or a device would block or never end.

    Raises:
      OSError: missing, or no regular file.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        if path.is_symlink():
            raise OSError("a link to nothing") from None
        raise
    if not stat.S_ISREG(found.st_mode):
        raise OSError("not a regular file")
    return found


def read_json(path: pathlib.Path, hint: str) -> dict:
    """Reads a JSON object.

    Raises:
      Unreadable: the system fails to read it.
      InputError: missing or oversized file, no JSON, or not an object.
    """
    try:
        size = check_regular(path).st_size
        if size > LARGEST_JSON:
            raise OSError(f"{size} bytes, expected at most {LARGEST_JSON}")
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; {hint}") from None
    except (OSError, ValueError, RecursionError) as error:
        if getattr(error, "errno", None):
            raise Unreadable(path, os.strerror(error.errno), hint) from None
        raise InputError(f"{path}: is not readable JSON ({reason_of(error)}); {hint}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: holds a {type(value).__name__}, expected a JSON object; {hint}")
    return value


def write_npy(path, array: np.ndarray) -> pathlib.Path:
    return write(path, lambda temporary: np.save(temporary, array))


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


_UMASK = _umask()
