"""What tests see of a bucket, and how they make it fail: fsspec's memory:// stands in for it."""

import time

from psaq_jax import buckets


def objects(url):
    fs, root = buckets.open_bucket(url)
    return {path.removeprefix(f"{root}/"): fs.cat_file(path) for path in fs.find(root)}


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


def replace(monkeypatch, url, name, function):
    """Lets the bucket's file system call `function(method, fs, *arguments)` in place of a method of its."""
    kind = type(buckets.open_bucket(url)[0])
    plain = getattr(kind, name)
    monkeypatch.setattr(kind, name, lambda fs, *arguments, **options: function(plain, fs, *arguments, **options))
