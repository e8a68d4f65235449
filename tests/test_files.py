"""Files appear whole or not at all."""

import errno
import json
import os

import numpy as np
import pytest

from psaq_jax import checksums, files
from psaq_jax.errors import InputError


def test_what_is_written_is_read_and_nothing_else_is_left(tmp_path):
    files.write_json(tmp_path / "new" / "a.json", {"x": 1})
    files.write_npy(tmp_path / "new" / "b.npy", np.arange(3))
    assert json.loads((tmp_path / "new" / "a.json").read_text()) == {"x": 1}
    np.testing.assert_array_equal(np.load(tmp_path / "new" / "b.npy"), [0, 1, 2])
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["a.json", "b.npy"]


def test_a_full_disk_leaves_the_earlier_file_and_no_part_of_the_new(tmp_path):
    path = files.write_bytes(tmp_path / "a", b"before")

    def half(temporary):
        temporary.write_bytes(b"ha")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(InputError, match="a: cannot be written .No space left on device.; free some space"):
        files.write(path, half)
    assert path.read_bytes() == b"before" and [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        files.write_bytes(tmp_path / "file" / "a", b"")


def test_nan_is_not_json(tmp_path):
    with pytest.raises(ValueError):
        files.write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not list(tmp_path.iterdir())


def test_text_that_utf_8_has_no_code_for_is_written_escaped(tmp_path):
    """As the name of a file that is no UTF-8, or a label."""
    assert files.write_text(tmp_path / "x.txt", "é\udce9\n").read_bytes() == "é\\udce9\n".encode()


def test_a_file_has_the_rights_that_the_umask_leaves(tmp_path):
    """Not those of a temporary file, which nobody else may read."""
    path = files.write_bytes(tmp_path / "a", b"")
    (tmp_path / "b").touch()
    assert path.stat().st_mode == (tmp_path / "b").stat().st_mode


def test_files_that_belong_together_need_room_for_all(tmp_path, monkeypatch):
    asked = []

    def full(handle, offset, size):
        asked.append(size)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(InputError, match="cannot be written .No space left on device.; free some space"):
        files.write_in_turn(tmp_path, {"a": b"12", "b": b"345"})
    assert asked == [5] and not list(tmp_path.iterdir())


@pytest.mark.parametrize("number, action", [
    (errno.ENOSPC, "free some space or"), (errno.EDQUOT, "free some space or"), (errno.EFBIG, "free some space or"),
    (None, "free some space or"), (errno.EACCES, ""), (errno.EROFS, ""),
])  # fmt: skip
def test_space_is_asked_for_where_it_helps(tmp_path, number, action):
    def fails(path):
        raise OSError("of another library") if number is None else OSError(number, os.strerror(number))

    with pytest.raises(InputError, match=rf"a: cannot be written \(.*\); {action} ?choose another folder$"):
        files.write(tmp_path / "a", fails)


def test_a_writer_sees_the_suffix(tmp_path):
    """By which NumPy, among others, decides; a file without any is written too."""
    seen = []
    for name in ("a.npz", "a"):
        files.write(tmp_path / name, lambda path: seen.append((path.suffix, path.name.startswith(files.UNFINISHED))))
    assert seen == [(".npz", True), ("", True)]


def test_every_bit_of_a_tree_counts():
    """Its dtypes, shapes and names too, which bytes alone don't tell, and the text beside it."""
    tree = {"a": np.zeros((2, 3), np.float32)}
    others = [{"a": np.zeros((3, 2), np.float32)}, {"a": np.zeros((2, 3), np.int32)}, {"b": tree["a"]}]
    found = [checksums.checksum(x) for x in (tree, *others)] + [checksums.checksum(tree, "settings")]
    assert len(set(found)) == 5 and checksums.checksum({"a": np.zeros((2, 3), np.float32)}) == found[0]


def test_json_beyond_the_largest_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LARGEST_JSON", 10)
    (tmp_path / "a.json").write_text('{"a": 345}')
    assert files.read_json(tmp_path / "a.json", "") == {"a": 345}
    (tmp_path / "a.json").write_text('{"a": 3456}')
    with pytest.raises(InputError, match="is not readable JSON .11 bytes, expected at most 10.; a hint"):
        files.read_json(tmp_path / "a.json", "a hint")
