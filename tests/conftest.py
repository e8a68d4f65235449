"""Fixtures of all tests. Strict: warnings are errors (pyproject.toml), and rank promotion must be spelled out."""

import contextlib

import jax
import pytest


@pytest.fixture
def compilations():
    """`with compilations() as count: ...; assert count() == n`: how often XLA compiled inside the block."""
    seen = []

    def listener(event, seconds, **_):
        seen.append(event)

    @contextlib.contextmanager
    def watch():
        start = len(seen)
        yield lambda: sum(event == "/jax/core/compile/backend_compile_duration" for event in seen[start:])

    jax.monitoring.register_event_duration_secs_listener(listener)
    return watch
