"""Work folders in a bucket, with fsspec's memory:// and file:// in its place."""

import contextlib
import errno
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import types

import numpy as np
import pytest

from psaq_jax import buckets, files
from psaq_jax.errors import InputError
from psaq_jax.workdir import open_workdir
from tests import jobs
from tests.buckets.stand_in import objects, replace, wait_for


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
        wait_for(lambda: {"a", ".index.json", ".lock"} <= set(objects(url)))
    assert set(objects(url)) == {"a", ".index.json"}


def test_a_failed_job_leaves_what_it_had_and_no_lock(url):
    with pytest.raises(InputError, match="the job's own"), buckets.local_copy(url) as folder:
        files.write_bytes(folder / "a", b"1")
        raise InputError("the job's own")
    assert set(objects(url)) == {"a", ".index.json"}


@pytest.mark.parametrize("error, times", [(ConnectionError, 1), (TimeoutError, 3)])
def test_a_network_that_fails_at_the_end_is_tried_again(url, error, times, monkeypatch):
    monkeypatch.setattr(buckets, "PAUSES", (0.0, 0.0, 0.0))
    failures = [error("gone")] * times

    def shaky(put_file, fs, *arguments):
        if failures:
            raise failures.pop()
        put_file(fs, *arguments)

    replace(monkeypatch, url, "put_file", shaky)
    with buckets.local_copy(url) as folder:
        files.write_bytes(folder / "results.json", b"1")
    assert set(objects(url)) == {"results.json", ".index.json"}


class HttpError(Exception):
    """As the clients of buckets have them: their kinds say little, the status does."""

    def __init__(self, code, response=None):
        super().__init__(f"status {code}")
        self.code, self.response = code, response


class StatusError(Exception):
    """As aiohttp's, which calls it otherwise."""

    def __init__(self, status):
        super().__init__(f"status {status}")
        self.status = status


class TransportError(Exception):
    """google.auth's, where it gets no token."""


@pytest.mark.parametrize("error, code", [
    (ConnectionError("gone"), 75), (socket.gaierror("no name"), 75), (TransportError("no token"), 75),
    (HttpError(503), 75), (HttpError(429), 75), (HttpError(None, types.SimpleNamespace(status_code=502)), 75),
    (StatusError(500), 75), (StatusError(404), 2), (HttpError(403), 2), (HttpError(None), 2),
    (PermissionError("no"), 2), (OSError("?"), 2),
])  # fmt: skip
def test_a_bucket_that_stays_away_ends_the_job_with_the_code_for_it(url, error, code, monkeypatch):
    monkeypatch.setattr(buckets, "PAUSES", (0.0,))

    def failing(put_file, fs, *arguments):
        raise error

    replace(monkeypatch, url, "put_file", failing)
    with pytest.raises(InputError, match=f"{type(error).__name__}: ") as ended, buckets.local_copy(url) as folder:
        files.write_bytes(folder / "a", b"1")
    assert ended.value.code == code


def test_a_full_disk_below_a_single_file_is_one_line(url):
    def full(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(InputError, match=r"cannot be written \(No space left on device\); free some space there"):
        files.write(f"{url}/a", full)
    assert not objects(url)


def test_a_failed_job_copies_when_its_thread_has_ended(url, monkeypatch):
    """Two uploads at a time would meet at the barrier."""
    monkeypatch.setattr(buckets, "EVERY", 0.01)
    barrier, uploads, met = threading.Barrier(2), [], []

    def slow(put_file, fs, *arguments):
        uploads.append(arguments)
        with contextlib.suppress(threading.BrokenBarrierError):
            barrier.wait(1)
            met.append(arguments)
        put_file(fs, *arguments)

    replace(monkeypatch, url, "put_file", slow)
    with pytest.raises(InputError, match="the job's own"), buckets.local_copy(url) as folder:
        files.write_bytes(folder / "a", b"1")
        wait_for(lambda: uploads)
        raise InputError("the job's own")
    assert not met
    assert set(objects(url)) == {"a", ".index.json"}


OUTSIDE = ("/tmp/b", "../b", "running/../../b", "..", "", "..\\b", "\\b", "\\\\host\\share\\b", "C:b", "C:/b", 1, None)


@pytest.mark.parametrize("name", OUTSIDE, ids=repr)
def test_an_index_that_leaves_the_folder_is_refused(url, name, monkeypatch):
    """Before anything is fetched."""
    fs, root = buckets.open_bucket(url)
    fs.pipe_file(f"{root}/a", b"1")
    fs.pipe_file(f"{root}/.index.json", json.dumps(["a", name]).encode())
    before = objects(url)
    replace(monkeypatch, url, "get_file", lambda *_: pytest.fail("fetched"))
    with pytest.raises(InputError) as caught, buckets.local_copy(url):
        pass
    found = f"{url}/.index.json: found {name!r}, expected names of files inside the folder; remove that object"
    assert str(caught.value).startswith(found)
    assert objects(url) == before


def test_what_an_index_names_outside_the_folder_is_not_removed(url, monkeypatch):
    fs, root = buckets.open_bucket(url)
    replace(monkeypatch, url, "rm_file", lambda rm_file, fs, path: path.endswith(".lock") or pytest.fail("removed"))
    with pytest.raises(InputError, match="found '../b', expected names"), buckets.local_copy(url):
        fs.pipe_file(f"{root}/.index.json", b'["../b"]')


@pytest.mark.parametrize(
    "content",
    [b"word" * 100, b'{"a": 1}', b'"a"', b"\xff", b"[" * 100_000],
    ids=["text", "dict", "string", "byte", "deep"],
)
def test_an_index_that_is_no_list_is_refused(url, content):
    fs, root = buckets.open_bucket(url)
    fs.pipe_file(f"{root}/.index.json", content)
    with pytest.raises(InputError, match=r"/.index.json: found .{1,80}, expected names of files"):
        with buckets.local_copy(url):
            pass


def test_what_is_told_names_the_bucket(url, capsys):
    with pytest.raises(InputError, match=f"^{url}/a: is damaged$"), buckets.local_copy(f"{url}/") as folder:
        print(f"  report: {folder / 'report.html'}", folder)
        raise InputError(f"{folder / 'a'}: is damaged")
    assert capsys.readouterr().out == f"  report: {url}/report.html {url}\n"


ENDS = """
import os, pathlib, sys, threading, time
from psaq_jax import buckets
buckets.EVERY = 0.01
with buckets.local_copy(sys.argv[1]) as folder:
    (folder / "a").write_text("1")
    while not pathlib.Path(sys.argv[2], ".index.json").exists():
        time.sleep(0.01)
    threading.Thread(target=os._exit, args=[75]).start()
    time.sleep(60)
"""


def test_a_process_that_ends_at_once_leaves_no_copy_here_and_all_there(tmp_path):
    """As when another process is lost, while a thread may be copying."""
    bucket, here = tmp_path / "bucket", tmp_path / "here"
    here.mkdir()
    settings = jobs.settings()
    settings["env"] |= {"TMPDIR": str(here)}
    done = subprocess.run([sys.executable, "-c", ENDS, f"file://{bucket}", bucket], timeout=120, **settings)
    assert done.returncode == 75, done.stderr
    jobs.wait_until_empty(here, "*")
    assert (bucket / "a").read_text() == "1" and json.loads((bucket / ".index.json").read_text()) == ["a"]


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
    "bad, message",
    [
        ("nonsense://b/x", "nonsense"),
        ("gs://b/x", r'pip install "\.\[cloud\]"'),
        ("gs://", "^gs://: found nothing behind ://, expected gs://BUCKET/PATH"),
        ("file:///", "found nothing behind ://"),
    ],
)
def test_unusable_schemes_are_named(bad, message, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(InputError, match=message):
        buckets.open_bucket(bad)


JOB = """
import runpy, sys
from launch import console

def progress(done, total):
    print("done", done, flush=True)
    sys.stdin.read()  # goes on when the test has closed it

console.bar = lambda title: progress
runpy.run_module("launch.synthesize", run_name="__main__", alter_sys=True)
"""


def iterations(output):
    """What a job told of its progress, after every chunk."""
    return [line for line in output.splitlines() if line.startswith("done ")]


def test_a_preempted_job_goes_on_from_the_bucket_with_the_same_bits(tmp_path):
    """It is stopped after its first chunk, ends the second, and the next job begins with the third."""

    def command(workdir):
        fields = ("num_images=4", "group_size=2", "iterations=200")
        return [
            sys.executable, "-c", JOB, "--config=configs/demo.py", f"--workdir={workdir}",
            f"--config.model={jobs.shallow(tmp_path)}",
            *(f"--config.synthesis.{field}" for field in fields),
        ]  # fmt: skip

    def run(workdir):
        done = subprocess.run(command(workdir), stdin=subprocess.DEVNULL, timeout=600, **settings)
        assert done.returncode == 0, done.stderr
        return iterations(done.stdout)

    settings = jobs.settings(tmp_path / "cache")
    whole = run(tmp_path / "whole")
    bucket = tmp_path / "bucket" / "run"
    process = subprocess.Popen(command(f"file://{bucket}"), stdin=subprocess.PIPE, **settings)
    told = next((line for line in process.stdout if line.startswith("done ")), "")
    process.send_signal(signal.SIGTERM)
    output, error = process.communicate(timeout=300)
    assert process.returncode == 143, error
    stopped = iterations(told + output)
    assert stopped == whole[: len(stopped)] and len(whole) > len(stopped) + 1
    assert run(f"file://{bucket}") == whole[len(stopped) + 1 :]
    images = pathlib.Path("images", "synthesized.npy")
    assert (bucket / images).read_bytes() == (tmp_path / "whole" / images).read_bytes()
    assert not (bucket / ".lock").exists()
