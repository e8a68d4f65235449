"""A job's folder: one job at a time, of one configuration."""

import errno
import json
import os
import re
import subprocess
import sys

import pytest

from psaq_jax import files, workdir
from psaq_jax.errors import InputError, TryAgain
from psaq_jax.workdir import open_workdir, results_folder
from tests import jobs

CONFIG = {"model": "m", "synthesis": {"iterations": 10, "jitter": (1.0, 2.0)}}


def test_the_same_config_opens_again(tmp_path):
    for _ in range(2):
        with open_workdir(tmp_path / "runs" / "first", CONFIG) as path:
            assert json.loads((path / "config.json").read_text())["synthesis"]["jitter"] == [1.0, 2.0]


def test_another_config_is_refused_with_the_field(tmp_path):
    with open_workdir(tmp_path, CONFIG):
        pass
    iterations = CONFIG["synthesis"] | {"iterations": 11}
    for changed, words in (
        (iterations, "synthesis.iterations is 10 there and 11 now"),
        (3, "synthesis is .* and 3 now"),
    ):
        with pytest.raises(InputError, match=words):
            with open_workdir(tmp_path, CONFIG | {"synthesis": changed}):
                pass


def test_further_fields_are_counted(tmp_path):
    with open_workdir(tmp_path, CONFIG):
        pass
    for changes, more in (({"model": "n"}, ";"), ({"model": "n", "seed": 1}, r" \(and 1 more\);")):
        with pytest.raises(InputError, match=f"belongs to another run: model is 'm' there and 'n' now{more} choose"):
            with open_workdir(tmp_path, CONFIG | changes):
                pass


def test_settings_are_kept_from_the_first_run_on(tmp_path):
    """All that differ are named, also those that are new or gone, and the file stays as it was."""
    file = tmp_path / "settings.json"
    for _ in range(2):
        workdir.keep_settings(file, {"a": 1, "b": (1, 2)}, "the job had", "choose another folder")
        assert json.loads(file.read_text()) == {"a": 1, "b": [1, 2]}
    changed = "a 1, which is missing now, b [1, 2], which is 3 now, c missing, which is 4 now"
    with pytest.raises(InputError, match=re.escape(f"settings.json: the job had {changed}; x")):
        workdir.keep_settings(file, {"b": 3, "c": 4}, "the job had", "x")
    assert json.loads(file.read_text()) == {"a": 1, "b": [1, 2]}


def test_settings_that_cannot_be_read_now_are_no_reason_to_remove_anything(tmp_path, monkeypatch):
    file = tmp_path / "settings.json"
    workdir.keep_settings(file, {"a": 1}, "the job had", "choose another folder")

    def fails(_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(type(file), "read_bytes", fails)
    with pytest.raises(TryAgain, match=r"cannot be read \(Input/output error\); nothing was removed"):
        workdir.keep_settings(file, {"a": 1}, "the job had", "choose another folder")


def test_a_field_that_an_earlier_version_did_not_know_is_another_config(tmp_path):
    with open_workdir(tmp_path, CONFIG):
        pass
    changed = CONFIG | {"synthesis": CONFIG["synthesis"] | {"parametrization": None}}
    with pytest.raises(InputError, match="synthesis.parametrization is missing there and None now"):
        with open_workdir(tmp_path, changed):
            pass


def test_a_models_folder_is_no_jobs_and_stays_as_it_is(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "vit", "image_size": 224}')
    with pytest.raises(InputError, match="has the config.json of a model; choose another folder"):
        with open_workdir(tmp_path, CONFIG):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_second_run_at_once_is_refused(tmp_path):
    with open_workdir(tmp_path, CONFIG):
        with pytest.raises(InputError, match="another run is at work there"):
            with open_workdir(tmp_path, CONFIG):
                pass


def test_a_file_system_without_locks_is_not_taken_for_another_run(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(workdir.fcntl, "flock", none)
    with pytest.raises(InputError, match=r"cannot be locked \(No locks available\); choose a folder on a file system"):
        with open_workdir(tmp_path, CONFIG):
            pass


def test_what_a_killed_run_was_writing_is_removed(tmp_path):
    (tmp_path / "quantized" / f"{files.UNFINISHED}artefact").mkdir(parents=True)
    dies = "import os, sys\nfrom psaq_jax import files\nfiles.write(sys.argv[1], lambda path: os.kill(os.getpid(), 9))"
    subprocess.run([sys.executable, "-c", dies, tmp_path / "quantized" / "large.npz"], timeout=60, **jobs.settings())
    assert len(list((tmp_path / "quantized").iterdir())) == 2
    other = tmp_path / "another_run" / "images"
    with open_workdir(tmp_path / "another_run", CONFIG):
        other.mkdir()
        (other / f"{files.UNFINISHED}x").write_text("")
        with open_workdir(tmp_path, CONFIG):
            assert list((tmp_path / "quantized").iterdir()) == []
        assert len(list(other.iterdir())) == 1  # of a run at work


def test_what_a_killed_job_was_writing_beside_others_is_removed(tmp_path):
    """Not below: others may be at work there, such as `save_quantized`, which has no lock."""
    for name in (f"{files.UNFINISHED}x.npy", f"below/{files.UNFINISHED}y.npy", f"{files.UNFINISHED}q/config.json"):
        files.write_text(tmp_path / name, "")
    with results_folder(tmp_path):
        found = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(found) == [".lock", f"{files.UNFINISHED}q/config.json", f"below/{files.UNFINISHED}y.npy"]


def test_a_config_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "directory" / "config.json").mkdir(parents=True)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "config.json").write_text("[" * 100_000)
    for name in ("directory", "deep"):
        with pytest.raises(InputError, match="config.json is no readable JSON"):
            with open_workdir(tmp_path / name, CONFIG):
                pass
    with pytest.raises(InputError, match="--workdir is empty"):
        with open_workdir("", CONFIG):
            pass


def test_a_file_in_its_place_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        with open_workdir(tmp_path / "file", CONFIG):
            pass


def test_results_of_two_jobs_do_not_mix(tmp_path):
    with results_folder(tmp_path), pytest.raises(InputError, match="another run is at work there"):
        with results_folder(tmp_path):
            pass


def test_a_tilde_is_the_users_folder(tmp_path, monkeypatch):
    """Which a shell leaves alone within --workdir=~/run."""
    monkeypatch.setenv("HOME", str(tmp_path))
    with results_folder("~/run") as folder:
        assert folder == tmp_path / "run" and folder.is_dir()


def test_results_go_into_no_other_job_s_folder(tmp_path):
    """A job's results.json would be overwritten; and what cannot be written is known before the work."""
    with open_workdir(tmp_path / "run", CONFIG):
        pass
    (tmp_path / "file").write_text("")
    refused = {"run": "has the config.json of another job", "file": "cannot be written", "a" * 300: "name too long"}
    for name, message in refused.items():
        with pytest.raises(InputError, match=message), results_folder(tmp_path / name):
            pytest.fail("the work began")
    with pytest.raises(InputError, match="^--output=.*file: cannot be written"):
        with results_folder(tmp_path / "file", lambda folder: None, "--output"):
            pytest.fail("the work began")

    def check(folder):
        raise InputError(f"{folder.name} will not do")

    with pytest.raises(InputError, match="^new will not do"), results_folder(tmp_path / "new", check):
        pytest.fail("the work began")
    with results_folder(tmp_path / "new") as folder:
        assert [path.name for path in folder.iterdir()] == [".lock"]
