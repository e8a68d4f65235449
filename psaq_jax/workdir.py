"""A job's folder, here or in a bucket: one job at a time, of one configuration, for one model."""

import contextlib
import fcntl
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping

from psaq_jax import buckets, distributed, files, resumption, temporary
from psaq_jax.errors import InputError, Unreadable

LOCK = ".lock"


class _Missing:
    """What a field is to a version that did not know it: no value, so another one than any."""

    def __repr__(self):
        return "missing"


MISSING = _Missing()


@contextlib.contextmanager
def open_workdir(path, config: Mapping) -> Iterator[pathlib.Path]:
    """Makes the folder, locks it while the block runs, and writes config.json or compares with the one there. What a
    killed run was writing is removed.

    Yields:
      The folder to write into; see `local_folder`.
    Raises:
      InputError: another process works there, its config.json differs (naming the fields), or no right to write.
    """
    distributed.check_same(f"--workdir={path}'s run", json.dumps(config))
    with local_folder(path) as folder:
        if _is_models(folder / "config.json"):
            raise InputError(f"--workdir={path}: has the config.json of a model; choose another folder")
        with _locked(path, folder):
            config = json.loads(json.dumps(config))
            _check_same(path, folder / "config.json", config)
            remove_unfinished(folder)
            files.write_json(folder / "config.json", config)
            yield folder


def remove_unfinished(folder: pathlib.Path, below: bool = True) -> None:
    """Removes what killed processes left in a folder and, unless `below` is False, in folders below it; not in those
    with a lock of their own, where others may be at work.
    """
    for root, folders, names in os.walk(folder):
        for name in names:
            if name.startswith(files.UNFINISHED):
                with contextlib.suppress(OSError):  # somebody else's, as in /tmp
                    pathlib.Path(root, name).unlink()
        if not below:
            return
        for name in folders:
            if name.startswith(files.UNFINISHED):
                shutil.rmtree(os.path.join(root, name), ignore_errors=True)
        folders[:] = [name for name in folders if not os.path.exists(os.path.join(root, name, LOCK))]


@contextlib.contextmanager
def _locked(path, folder: pathlib.Path, flag: str = "--workdir") -> Iterator[None]:
    """Makes the folder, and keeps others out while the block runs; the system opens the lock of who dies."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("w")
    except OSError as error:
        raise InputError(f"{flag}={path}: cannot be written ({error.strerror}); choose another folder") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{flag}={path}: another run is at work there; wait for it or choose another") from None
        except OSError as error:
            found = f"{flag}={path}: cannot be locked ({error.strerror})"
            raise InputError(f"{found}; choose a folder on a file system that has locks") from None
        yield


@contextlib.contextmanager
def local_folder(path) -> Iterator[pathlib.Path]:
    """Where a job writes what belongs into --workdir: there, or for gs://... into a local copy that follows it.

    Of several processes only the first has the real folder; the others get one that is thrown away.
    """
    if not str(path):
        raise InputError("--workdir is empty, expected a folder")
    if not distributed.is_first():
        with temporary.folder() as folder:
            yield folder
    elif buckets.is_url(path):
        with buckets.local_copy(str(path)) as folder:
            yield folder
    else:
        yield pathlib.Path(os.path.expanduser(path))


@contextlib.contextmanager
def results_folder(
    path, check: Callable[[pathlib.Path], None] | None = None, flag: str = "--workdir"
) -> Iterator[pathlib.Path]:
    """`local_folder` of a job that writes files beside others: tried before the work, and locked while the block runs.
    Files that a killed job was writing there are removed; not below, where others may be at work.

    Args:
      check: raises InputError where the folder will not do; by default, where it is another kind of job's.
      flag: that `path` was given by, for errors.
    Raises:
      InputError: a folder with a config.json, another process at work there, or no right to write.
    """
    with local_folder(path) as folder:
        if check:
            check(folder)
        elif os.path.exists(folder / "config.json"):
            raise InputError(f"{flag}={path}: has the config.json of another job or model; choose another folder")
        with _locked(path, folder, flag):
            remove_unfinished(folder, below=False)
            yield folder


def keep_settings(file: pathlib.Path, settings: Mapping, whose: str, action: str) -> None:
    """Notes in a JSON file of a folder what its results depend on.

    Raises:
      InputError: "FILE: WHOSE NAME OLD, which is NEW now; ACTION" where it holds others, or it is damaged.
      TryAgain: the system fails to read it.
    """
    settings = before = json.loads(json.dumps(settings))  # tuples are lists there
    if file.exists():
        try:
            before = files.read_json(file, "remove its folder and start again")
        except Unreadable as error:
            raise resumption.unreadable(error.path, error.reason) from None
    changed = [f"{name} {old!r}, which is {new!r} now" for name, old, new in _differences("", before, settings)]
    if changed:
        raise InputError(f"{file}: {whose} {', '.join(changed)}; {action}")
    files.write_json(file, settings)


def _is_models(file: pathlib.Path) -> bool:
    """Whether it is the config.json of a checkpoint or artefact."""
    try:
        return "model_type" in files.read_json(file, "")
    except InputError:  # what it is of, if anything, the lock or `_check_same` tells
        return False


def _check_same(workdir, file: pathlib.Path, config: Mapping) -> None:
    if not file.exists():
        return
    before = resumption.read_json_if_whole(file)
    if before is None:
        raise InputError(f"{workdir}: config.json is no readable JSON; remove it or choose another --workdir")
    changes = list(_differences("", before, config))
    if changes:
        name, old, new = changes[0]
        more = f" (and {len(changes) - 1} more)" if changes[1:] else ""
        raise InputError(
            f"{workdir} belongs to another run: {name} is {old!r} there and {new!r} now{more}; "
            "choose another --workdir, or remove that folder"
        )


def _differences(prefix: str, before, now):
    if isinstance(before, dict) and isinstance(now, dict):
        for name in sorted(before.keys() | now.keys()):
            yield from _differences(f"{prefix}.{name}".lstrip("."), before.get(name, MISSING), now.get(name, MISSING))
    elif before != now:
        yield prefix, before, now
