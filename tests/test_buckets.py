"""Work folders in a bucket, with fsspec's memory:// and file:// in its place."""

import itertools
import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from psaq_jax import buckets, files
from psaq_jax.errors import InputError
from psaq_jax.workdir import open_workdir
from tests import jobs

NUMBERS = itertools.count()


@pytest.fixture
def url(monkeypatch):
    for name in ("LOCK_LIFE", "SETTLE"):
        monkeypatch.setattr(buckets, name, 0.05)
    return f"memory://bucket{next(NUMBERS)}/run"


def objects(url):
    fs, root = buckets.open_bucket(url)
    return {path.removeprefix(f"{root}/"): fs.cat_file(path) for path in fs.find(root)}


def test_what_a_job_writes_is_there_and_the_next_job_finds_it(url):
    with buckets.local_copy(url) as folder:
        files.write_bytes(folder / "images" / "a.npy", b"1")
        files.write_bytes(folder / "b", b"2")
    assert objects(url) == {"images/a.npy": b"1", "b": b"2", ".index.json": b'["b", "images/a.npy"]'}
    with buckets.local_copy(url) as folder:
        assert (folder / "images" / "a.npy").read_bytes() == b"1"
        (folder / "b").unlink()
        files.write_bytes(folder / "images" / "a.npy", b"10")
    assert objects(url) == {"images/a.npy": b"10", ".index.json": b'["images/a.npy"]'}
    assert not folder.exists()


def test_half_a_checkpoint_is_never_seen(url):
    """Killed between the objects and the index: what the last index lists is what the next job gets."""
    with buckets.local_copy(url) as folder:
        files.write_bytes(folder / "running" / "25" / "data", b"whole")
    fs, root = buckets.open_bucket(url)
    fs.pipe_file(f"{root}/running/50/data", b"ha")
    with buckets.local_copy(url) as folder:
        assert [path.name for path in (folder / "running").iterdir()] == ["25"]


def test_unfinished_files_stay_here(url):
    with buckets.local_copy(url) as folder:
        for name in (".temporary", "running/50.orbax-checkpoint-tmp/data", ".hidden/a", "whole"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(b"")
    assert set(objects(url)) == {"whole", ".index.json"}


def test_files_go_to_the_bucket_while_the_job_runs(url, monkeypatch):
    monkeypatch.setattr(buckets, "EVERY", 0.01)
    with buckets.local_copy(url) as folder:
        files.write_bytes(folder / "a", b"1")
        deadline = time.monotonic() + 60
        while "a" not in objects(url) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert {"a", ".lock"} <= set(objects(url))


def test_a_failed_job_leaves_what_it_had_and_no_lock(url):
    with pytest.raises(InputError, match="the job's own"), buckets.local_copy(url) as folder:
        files.write_bytes(folder / "a", b"1")
        raise InputError("the job's own")
    assert set(objects(url)) == {"a", ".index.json"}


def test_a_dead_runs_lock_is_taken_over(url):
    fs, root = buckets.open_bucket(url)
    fs.pipe_file(f"{root}/.lock", b"host 1 killed")
    with buckets.local_copy(url):
        assert objects(url)[".lock"] != b"host 1 killed"
    assert ".lock" not in objects(url)


def test_a_living_runs_lock_is_respected(url, monkeypatch):
    fs, root = buckets.open_bucket(url)
    fs.pipe_file(f"{root}/.lock", b"host 1 beat 1")
    monkeypatch.setattr(buckets.time, "sleep", lambda _: fs.pipe_file(f"{root}/.lock", b"host 1 beat 2"))
    with pytest.raises(InputError, match=r"another run is at work there \(host 1\)"):
        with buckets.local_copy(url):
            pass
    assert objects(url)[".lock"] == b"host 1 beat 2"


def test_another_config_is_refused_there_too(url):
    with open_workdir(url, {"iterations": 1}) as folder:
        assert json.loads((folder / "config.json").read_text()) == {"iterations": 1}
    with pytest.raises(InputError, match=f"{url} belongs to another run: iterations is 1 there and 2 now"):
        with open_workdir(url, {"iterations": 2}):
            pass


def test_single_files_go_there_whole(url):
    files.write_npy(f"{url}/a.npy", np.arange(3))
    assert set(objects(url)) == {"a.npy"}


@pytest.mark.parametrize(
    "bad, message", [("nonsense://b/x", "nonsense"), ("gs://b/x", r'pip install "psaq_jax\[cloud\]"')]
)
def test_unusable_schemes_are_named(bad, message, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(InputError, match=message):
        buckets.open_bucket(bad)


def test_a_preempted_job_goes_on_from_the_bucket_with_the_same_bits(tmp_path):
    def command(workdir):
        fields = ("num_images=4", "group_size=2", "iterations=3000")
        return [
            sys.executable, "-m", "launch.synthesize", "--config=configs/demo.py", f"--workdir={workdir}", "--quiet",
            f"--config.model={jobs.TINY}",
            *(f"--config.synthesis.{field}" for field in fields),
        ]  # fmt: skip

    settings = jobs.settings(tmp_path / "cache")
    subprocess.run(command(tmp_path / "whole"), check=True, timeout=600, **settings)
    bucket = tmp_path / "bucket"
    process = subprocess.Popen(command(f"file://{bucket}/run"), **settings)
    while not (bucket / "run" / ".lock").exists() and process.poll() is None:
        time.sleep(0.02)
    time.sleep(3)  # compiling, or at work: a job that is stopped before its first chunk saves after it
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=300)
    assert process.returncode in (143, -15), error  # -15: before the job minds signals
    done = subprocess.run(command(f"file://{bucket}/run"), timeout=600, **settings)
    assert done.returncode == 0, done.stderr
    whole = (tmp_path / "whole" / "images" / "synthesized.npy").read_bytes()
    assert (bucket / "run" / "images" / "synthesized.npy").read_bytes() == whole
    assert not (bucket / "run" / ".lock").exists()
