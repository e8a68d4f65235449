"""What disks and killed copies do to a file."""

import pathlib


def _flip(path: pathlib.Path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "bit": _flip,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1000]),
    "other": lambda path: path.write_bytes(b"other"),
    "empty": lambda path: path.write_bytes(b""),
    "gone": lambda path: path.unlink(),
}
