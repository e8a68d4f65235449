"""A bucket of its own for each test."""

import itertools

import pytest

from psaq_jax import bucket_lock

NUMBERS = itertools.count()


@pytest.fixture
def url(monkeypatch):
    for name in ("LOCK_LIFE", "SETTLE"):
        monkeypatch.setattr(bucket_lock, name, 0.05)
    return f"memory://bucket{next(NUMBERS)}/run"
