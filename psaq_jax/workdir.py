"""A job's folder: one job at a time, of one configuration, for one model."""

import contextlib
import fcntl
import json
import pathlib
from collections.abc import Iterator, Mapping

from psaq_jax import files
from psaq_jax.errors import InputError


@contextlib.contextmanager
def open_workdir(path, config: Mapping) -> Iterator[pathlib.Path]:
    """Makes the folder, locks it while the block runs, and writes config.json or compares with the one there.

    Raises:
      InputError: another process works there, its config.json differs (naming the fields), or no right to write.
    """
    path = pathlib.Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / ".lock").open("w")
    except OSError as error:
        raise InputError(f"--workdir={path}: cannot be written ({error.strerror}); choose another folder") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"--workdir={path}: another run is at work there; wait for it or choose another") from None
        config = json.loads(json.dumps(config))
        _check_same(path / "config.json", config)
        files.write_json(path / "config.json", config)
        yield path


def _check_same(file: pathlib.Path, config: Mapping) -> None:
    if not file.exists():
        return
    try:
        before = json.loads(file.read_bytes())
    except ValueError:
        raise InputError(f"{file}: is not readable JSON; remove it or choose another --workdir") from None
    changes = list(_differences("", before, config))
    if changes:
        name, old, new = changes[0]
        more = f" (and {len(changes) - 1} more)" if changes[1:] else ""
        raise InputError(
            f"{file.parent} belongs to another run: {name} is {old!r} there and {new!r} now{more}; "
            "choose another --workdir, or remove that folder"
        )


def _differences(prefix: str, before, now):
    if isinstance(before, dict) and isinstance(now, dict):
        for name in sorted(before.keys() | now.keys()):
            yield from _differences(f"{prefix}.{name}".lstrip("."), before.get(name), now.get(name))
    elif before != now:
        yield prefix, before, now
