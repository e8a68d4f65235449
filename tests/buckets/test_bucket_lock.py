"""Two runs on one bucket: one of them works, and a dead one is in nobody's way."""

import contextlib
import threading
import time

import pytest

from psaq_jax import bucket_lock, buckets, files
from psaq_jax.errors import InputError
from tests.buckets.stand_in import objects, replace, wait_for


def test_a_dead_runs_lock_is_taken_over(url):
    fs, root = buckets.open_bucket(url)
    fs.pipe_file(f"{root}/.lock", b"host 1 killed")
    with buckets.local_copy(url):
        assert objects(url)[".lock"] != b"host 1 killed"
    assert ".lock" not in objects(url)


def test_a_living_runs_lock_is_respected(url, monkeypatch):
    fs, root = buckets.open_bucket(url)
    fs.pipe_file(f"{root}/.lock", b"host 1 beat 1")
    monkeypatch.setattr(bucket_lock.time, "sleep", lambda _: fs.pipe_file(f"{root}/.lock", b"host 1 beat 2"))
    with pytest.raises(InputError, match=r"another run is at work there \(host 1\)"):
        with buckets.local_copy(url):
            pass
    assert objects(url)[".lock"] == b"host 1 beat 2"


def test_a_run_that_ended_while_another_waited_is_in_nobodys_way(url, monkeypatch):
    fs, root = buckets.open_bucket(url)
    fs.pipe_file(f"{root}/.lock", b"host 1 beat 1")
    pauses = []
    monkeypatch.setattr(bucket_lock.time, "sleep", lambda _: pauses or pauses.append(fs.rm_file(f"{root}/.lock")))
    with buckets.local_copy(url) as folder:
        files.write_bytes(folder / "a", b"1")
    assert pauses and set(objects(url)) == {"a", ".index.json"}


def test_of_two_that_start_at_once_one_is_refused(url, monkeypatch):
    """Neither found a lock; the other's stands there when this one looks again, and stays."""
    fs, root = buckets.open_bucket(url)
    monkeypatch.setattr(bucket_lock.time, "sleep", lambda _: fs.pipe_file(f"{root}/.lock", b"host 2 beat 1"))
    with pytest.raises(InputError, match=r"another run is at work there \(host 2\)"), buckets.local_copy(url):
        pytest.fail("the work began")
    assert objects(url) == {".lock": b"host 2 beat 1"}


def test_a_lock_that_is_being_rewritten_is_not_lost(url, monkeypatch):
    """As file:// does it: emptied first."""
    monkeypatch.setattr(buckets, "EVERY", 0.01)

    def emptied_first(pipe_file, fs, path, content):
        if threading.current_thread() is not threading.main_thread() and path.endswith(".lock"):
            pipe_file(fs, path, b"")
            time.sleep(0.3)
        pipe_file(fs, path, content)

    replace(monkeypatch, url, "pipe_file", emptied_first)
    with buckets.local_copy(url) as folder:
        wait_for(lambda: objects(url)[".lock"] == b"")
        files.write_bytes(folder / "a", b"1")
    assert set(objects(url)) == {"a", ".index.json"}


@pytest.mark.parametrize("ended", [True, False])
def test_a_run_that_lost_its_lock_leaves_the_new_owners_files_alone(url, ended, monkeypatch):
    """The first run looks dead: no sign of life comes before the second takes over."""
    monkeypatch.setattr(buckets, "EVERY", 3600)
    with buckets.local_copy(url) as folder:
        files.write_bytes(folder / "running" / "25" / "data", b"25")
    second = contextlib.ExitStack()
    with pytest.raises(InputError, match=rf"{url}: the lock there is .*'s, expected this run's"):
        with buckets.local_copy(url) as folder:
            files.write_bytes(folder / "late", b"late")
            there = second.enter_context(buckets.local_copy(url))
            (there / "running" / "25" / "data").unlink()
            files.write_bytes(there / "running" / "900" / "data", b"900")
            if ended:
                second.close()
            before = objects(url)
    assert objects(url) == before
    second.close()
    assert objects(url) == {"running/900/data": b"900", ".index.json": b'["running/900/data"]'}


def test_a_run_that_loses_its_lock_while_it_copies_leaves_the_index_alone(url, monkeypatch):
    fs, root = buckets.open_bucket(url)
    with buckets.local_copy(url) as folder:
        files.write_bytes(folder / "a", b"1")

    def last_one(put_file, *arguments):
        put_file(*arguments)
        fs.pipe_file(f"{root}/.lock", b"host 2 another")

    with pytest.raises(InputError, match="the lock there is host 2's, expected this run's"):
        with buckets.local_copy(url) as folder:
            (folder / "a").unlink()
            files.write_bytes(folder / "b", b"2")
            replace(monkeypatch, url, "put_file", last_one)
    assert objects(url) == {"a": b"1", "b": b"2", ".index.json": b'["a"]', ".lock": b"host 2 another"}


def test_a_run_that_lost_its_lock_gives_no_signs_of_life(url, tmp_path):
    mirror = buckets.Mirror(url, tmp_path / "copy")
    mirror.lock.take()
    mirror.fs.pipe_file(f"{mirror.root}/.lock", b"host 2 another")
    mirror.lock.sign()
    assert objects(url) == {".lock": b"host 2 another"}


@pytest.mark.parametrize("method", ["get_file", "put_file"])
def test_a_long_copy_gives_signs_of_life(url, monkeypatch, method):
    """A file that is fetched at the start or sent at the end takes until two signs have come."""
    with buckets.local_copy(url) as folder:
        files.write_bytes(folder / "a", b"1")
    monkeypatch.setattr(buckets, "EVERY", 0.01)
    signs = set()

    def slow(plain, fs, *arguments):
        wait_for(lambda: signs.add(objects(url)[".lock"]) or len(signs) > 2)
        plain(fs, *arguments)

    replace(monkeypatch, url, method, slow)
    with buckets.local_copy(url) as folder:
        files.write_bytes(folder / "a", b"10")
    assert len(signs) > 2
    assert objects(url) == {"a": b"10", ".index.json": b'["a"]'}


def test_signs_of_life_go_on_when_the_bucket_has_failed(url, monkeypatch):
    monkeypatch.setattr(buckets, "EVERY", 0.01)
    failures = [ConnectionError("for a moment")]

    def failing(pipe_file, fs, path, *arguments):
        if failures and threading.current_thread() is not threading.main_thread() and path.endswith(".lock"):
            raise failures.pop()
        pipe_file(fs, path, *arguments)

    replace(monkeypatch, url, "pipe_file", failing)
    with buckets.local_copy(url):
        wait_for(lambda: not failures)
        before = objects(url)[".lock"]
        wait_for(lambda: objects(url)[".lock"] != before)
