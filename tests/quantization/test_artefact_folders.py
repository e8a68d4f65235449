"""Artefacts replace artefacts and nothing else, whole or not at all."""

import errno
import io
import os
import pathlib
import re

import pytest

from psaq_jax import InputError, quantize
from psaq_jax.errors import TryAgain
from psaq_jax.pipeline import saved_model
from psaq_jax.quantization.artefact import is_artefact, load_quantized, load_quantized_if_whole, save_quantized
from tests.quantization.artefacts import assert_equal

pytestmark = pytest.mark.usefixtures("quickly_compiled")


def test_an_earlier_artefact_is_replaced_through_a_symlink_too(calibrated, tmp_path):
    save_quantized(quantize(*calibrated, 8, 8), tmp_path / "q")
    (tmp_path / "link").symlink_to("q")
    q = quantize(*calibrated, 4, 4)
    save_quantized(q, tmp_path / "link")
    assert_equal(load_quantized(tmp_path / "q"), q)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "q"]


def test_the_working_directory_is_not_renamed_away(calibrated, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="is the folder that this process works in"):
        save_quantized(quantize(*calibrated, 8, 8), ".")
    save_quantized(quantize(*calibrated, 8, 8), "inside")
    assert [path.name for path in tmp_path.iterdir()] == ["inside"]


def test_an_empty_folder_is_used(calibrated, tmp_path):
    (tmp_path / "q").mkdir()
    assert is_artefact(save_quantized(quantize(*calibrated), tmp_path / "q"))


def test_a_home_directory(calibrated, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    q = quantize(*calibrated)
    save_quantized(q, "~/q")
    assert is_artefact("~/q") and is_artefact(tmp_path / "q")
    assert_equal(load_quantized("~/q"), q)
    assert not is_artefact("~nobody of this name/q")


@pytest.mark.parametrize("name", ["notes.txt", "config.json", "model.safetensors"])
def test_a_folder_with_other_files_is_left_alone(calibrated, tmp_path, name):
    (tmp_path / "q").mkdir()
    (tmp_path / "q" / name).write_text("{}")
    assert not is_artefact(tmp_path / "q")
    with pytest.raises(InputError, match=re.escape(name)):
        save_quantized(quantize(*calibrated), tmp_path / "q")
    assert [path.name for path in (tmp_path / "q").iterdir()] == [name]


def test_an_artefact_with_a_users_file_is_left_alone(calibrated, tmp_path):
    q = quantize(*calibrated)
    (save_quantized(q, tmp_path / "q") / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="mine.txt"):
        save_quantized(q, tmp_path / "q")
    assert (tmp_path / "q" / "mine.txt").read_text() == "keep"


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_file_in_the_way(calibrated, tmp_path, place):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="file") as caught:
        save_quantized(quantize(*calibrated), tmp_path / place)
    assert "\n" not in str(caught.value) and (tmp_path / "file").read_text() == "x"


def test_a_full_disk_leaves_the_earlier_artefact_and_no_litter(calibrated, tmp_path, monkeypatch):
    earlier = quantize(*calibrated, 8, 8)
    save_quantized(earlier, tmp_path / "q")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(InputError, match="No space left") as caught:
        patch.setattr(os, "fsync", full)
        save_quantized(quantize(*calibrated, 4, 4), tmp_path / "q")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["q"]
    assert_equal(load_quantized(tmp_path / "q"), earlier)


def test_an_earlier_artefact_comes_back_where_the_new_one_cannot_take_its_place(calibrated, tmp_path, monkeypatch):
    """The first rename, out of the way, succeeds; the second fails."""
    earlier, rename, times = quantize(*calibrated, 8, 8), pathlib.Path.rename, []
    save_quantized(earlier, tmp_path / "q")

    def fails(path, target):
        times.append(target)
        if len(times) == 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(path, target)

    with monkeypatch.context() as patch, pytest.raises(InputError, match=r"cannot be written \(Input/output error\)"):
        patch.setattr(pathlib.Path, "rename", fails)
        save_quantized(quantize(*calibrated, 4, 4), tmp_path / "q")
    assert len(times) == 3 and [path.name for path in tmp_path.iterdir()] == ["q"]
    assert_equal(load_quantized(tmp_path / "q"), earlier)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "preprocessor_config.json"])
def test_what_nobody_may_read_is_not_taken_for_damaged(calibrated, tmp_path, monkeypatch, name):
    save_quantized(quantize(*calibrated), tmp_path / "q")
    real = pathlib.Path.open

    def denied(path, *arguments, **named):
        if path.name == name:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *arguments, **named)

    monkeypatch.setattr(pathlib.Path, "open", denied)
    with pytest.raises(TryAgain, match=rf"{name}: cannot be read \(Permission denied\); nothing was removed"):
        load_quantized_if_whole(tmp_path / "q")
    if name == "model.safetensors":
        with pytest.raises(InputError, match=rf"{name}: cannot be read \(Permission denied\); correct the path, or"):
            load_quantized(tmp_path / "q")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "preprocessor_config.json"])
def test_what_a_disk_cannot_read_now_is_not_taken_for_damaged(calibrated, tmp_path, monkeypatch, name):
    """It opens, and reading fails: the model stays where it is."""
    save_quantized(quantize(*calibrated), tmp_path / "q")
    real = pathlib.Path.open

    class Failing(io.RawIOBase):
        def readable(self):
            return True

        def readinto(self, buffer):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def opened(path, *arguments, **named):
        return Failing() if path.name == name else real(path, *arguments, **named)

    monkeypatch.setattr(pathlib.Path, "open", opened)
    with pytest.raises(TryAgain, match=r"cannot be read \(Input/output error\); nothing was removed"):
        saved_model(tmp_path / "q")
    monkeypatch.undo()
    assert saved_model(tmp_path / "q")
