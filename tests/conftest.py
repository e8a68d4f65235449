"""Fixtures of all tests. Strict: warnings are errors (pyproject.toml), and rank promotion must be spelled out."""

import contextlib
import gc

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def forget_compiled_code():
    """Compiled code of a thousand tests would use up the mappings of memory that a process may have (65,530)."""
    yield
    jax.clear_caches()
    gc.collect()


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
