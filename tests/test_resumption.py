"""What an earlier run left: whole, or not there at all."""

import errno
import json
import os

import jax
import numpy as np
import pytest

from psaq_jax import resumption
from psaq_jax.errors import TryAgain


def test_arrays_come_back_whole_or_not_at_all(tmp_path):
    """Also where a zip file's own checksums notice nothing, as when a shape inside becomes smaller."""
    arrays = {"images": np.arange(64, dtype=np.float32).reshape(4, 16), "first": np.asarray(3)}
    path = resumption.write_npz(tmp_path / "a.npz", arrays)
    content, found = path.read_bytes(), resumption.read_npz(path)
    assert found.keys() == arrays.keys() and all((found[name] == arrays[name]).all() for name in arrays)
    flipped = [bytes([*content[:i], content[i] ^ 1 << i % 8, *content[i + 1 :]]) for i in range(len(content))]
    for damaged in (*flipped, *(content[:i] for i in range(0, len(content), 50))):
        path.write_bytes(damaged)
        found = resumption.read_npz(path)
        assert found is None or all((found[name] == arrays[name]).all() for name in arrays), "such as a date's bits"
    path.write_bytes(content.replace(b"(4, 16)", b"(2, 16)"))
    assert resumption.read_npz(path) is None
    path.unlink()
    assert resumption.read_npz(path) is None


def test_a_tree_comes_back_as_one_of_its_kind_or_not_at_all(tmp_path):
    tree = {"a": np.arange(3, dtype=np.float32), "b": (np.asarray(2), None)}
    path = resumption.write_tree(tmp_path / "a.npz", tree)
    assert jax.tree.all(jax.tree.map(lambda x, y: (x == y).all(), tree, resumption.read_tree(path, tree)))
    for other in ({"a": np.arange(4, dtype=np.float32)}, {"a": np.arange(3)}, {"c": np.zeros(3)}):
        assert resumption.read_tree(path, tree | other) is None
    content = bytearray(path.read_bytes())
    content[content.index(np.float32(2).tobytes())] ^= 1
    path.write_bytes(content)
    assert resumption.read_tree(path, tree) is None and resumption.read_tree(tmp_path / "none.npz", tree) is None


READERS = [resumption.read_npz, resumption.read_figures, resumption.read_json_if_whole]


@pytest.mark.parametrize("read", READERS)
def test_what_cannot_be_opened_is_not_taken_for_damaged(tmp_path, read):
    path = tmp_path / "a"
    path.symlink_to(path)
    with pytest.raises(TryAgain, match=r"cannot be read \(Too many levels of symbolic links\); nothing was removed"):
        read(path)


@pytest.mark.parametrize("read", READERS)
def test_what_is_no_file_is_none_and_does_not_block(tmp_path, read):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    assert [read(tmp_path / name) for name in ("folder", "pipe", "nothing")] == [None] * 3


def test_arrays_of_a_disk_that_fails_meanwhile_are_not_taken_for_damaged(tmp_path, monkeypatch):
    path = resumption.write_npz(tmp_path / "a.npz", {"x": np.arange(3)})

    def fails(*_, **__):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(resumption.np, "load", fails)
    with pytest.raises(TryAgain, match=r"cannot be read \(Input/output error\); nothing was removed"):
        resumption.read_npz(path)


def test_figures_keep_their_checksum_however_they_are_laid_out(tmp_path):
    path = resumption.write_figures(tmp_path / "a.json", {"b": 1, "a": [2.5, None]})
    assert resumption.read_figures(path) == {"b": 1, "a": [2.5, None]}
    path.write_text(json.dumps(dict(sorted(json.loads(path.read_text()).items()))))
    assert resumption.read_figures(path) == {"b": 1, "a": [2.5, None]}
    path.write_text(path.read_text().replace("2.5", "2.6"))
    assert resumption.read_figures(path) is None


INPUTS = {"x": np.arange(3, dtype=np.float32)}


def run(folder, settings="a", inputs=INPUTS):
    """(what came, whether it was computed)."""
    computed = []

    def compute():
        computed.append(True)
        return {"sum": np.float32([inputs["x"].sum(), len(settings)])}

    like = {"sum": np.zeros(2, np.float32)}
    return resumption.finished(folder, settings, inputs, like, compute)["sum"].tolist(), bool(computed)


def test_the_same_is_not_computed_twice(tmp_path):
    assert run(tmp_path) == ([3, 1], True)
    assert run(tmp_path) == ([3, 1], False)


@pytest.mark.parametrize("changed", [{"settings": "ab"}, {"inputs": {"x": np.float32([0, 1, 3])}}])
def test_another_setting_or_input_is_computed(tmp_path, changed):
    run(tmp_path)
    expected = [3, 2] if "settings" in changed else [4, 1]
    assert run(tmp_path, **changed) == (expected, True)
    assert run(tmp_path) == ([3, 1], False), "and leaves what was there"


def test_without_a_folder_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(None) == run(None) == ([3, 1], True)
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_is_computed_anew(tmp_path):
    run(tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-20])
    assert run(tmp_path) == ([3, 1], True)
    assert run(tmp_path) == ([3, 1], False)
