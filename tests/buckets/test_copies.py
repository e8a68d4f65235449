"""What a bucket and its local copy send each other: what has changed, and that alone."""

import os

from psaq_jax import buckets, files
from tests.buckets.stand_in import objects, replace


def test_a_change_is_one_of_time_or_of_size(url):
    """A new content of as many bytes, and another one that bears the earlier time."""
    with buckets.local_copy(url) as folder:
        for name in "ab":
            files.write_bytes(folder / name, b"1")
    with buckets.local_copy(url) as folder:
        os.utime(files.write_bytes(folder / "a", b"2"), ns=(0, 0))
        before = (folder / "b").stat()
        os.utime(files.write_bytes(folder / "b", b"10"), ns=(before.st_atime_ns, before.st_mtime_ns))
    assert objects(url) == {"a": b"2", "b": b"10", ".index.json": b'["a", "b"]'}


def test_what_was_fetched_is_not_sent_again(url, monkeypatch):
    with buckets.local_copy(url) as folder:
        files.write_bytes(folder / "a", b"1")
    sent = []
    replace(monkeypatch, url, "put_file", lambda put, fs, *names: sent.append(names[1]) or put(fs, *names))
    with buckets.local_copy(url) as folder:
        files.write_bytes(folder / "b", b"2")
    assert [name.rpartition("/")[2] for name in sent] == ["b"]


def test_what_goes_before_any_index_has_it_goes_from_the_bucket_too(url, tmp_path, monkeypatch):
    """As a checkpoint that a newer one replaces while the bucket gets it."""
    mirror = buckets.Mirror(url, tmp_path / "copy")
    mirror.lock.take()
    older = files.write_bytes(tmp_path / "copy" / "50", b"1")

    def put(sends, fs, *names):
        sends(fs, *names)
        if older.exists():
            older.unlink()
            files.write_bytes(tmp_path / "copy" / "75", b"2")

    replace(monkeypatch, url, "put_file", put)
    mirror.push()
    assert {name: content for name, content in objects(url).items() if name.isdecimal()} == {"75": b"2"}


def test_what_was_gone_and_is_back_is_sent_again(url, tmp_path):
    """As a file that another name stood in for meanwhile: its time and size are those that were sent."""
    mirror = buckets.Mirror(url, tmp_path / "copy")
    mirror.lock.take()
    path = files.write_bytes(tmp_path / "copy" / "a", b"1")
    mirror.push()
    path.rename(tmp_path / "aside")
    mirror.push()
    assert "a" not in objects(url)
    (tmp_path / "aside").rename(path)
    mirror.push()
    assert objects(url)["a"] == b"1"
