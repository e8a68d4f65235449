"""Fixtures of all tests. Strict: warnings are errors (pyproject.toml), and rank promotion must be spelled out."""

import contextlib
import gc
import os
import pathlib

import pytest

# The tests' processes, the jobs that they start and later runs share what they compile. JAX reads this when imported.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parents[1] / ".venv" / "compiled"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# Most of the time goes into compiling small programs, and splitting each for several threads costs a tenth of it.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_parallel_codegen_split_count=1".strip()
import jax

from psaq_jax.synthesis import chunks
from tests import quick_compilation


def pytest_collection_finish():
    """What is imported by now stays: no collection of garbage needs to look at it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def forget_compiled_code():
    """Compiled code of a thousand tests would use up the mappings of memory that a process may have (65,530).

    And what one file compiled quickly must not run in another, where rounding decides.
    """
    yield
    jax.clear_caches()
    chunks.compile_chunk.cache_clear()
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


@pytest.fixture(scope="module")
def quickly_compiled():
    """For files of tests that compile for minutes what runs for milliseconds, and that no rounding decides."""
    with quick_compilation.quickly():
        yield
