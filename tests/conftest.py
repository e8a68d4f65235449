"""Fixtures of all tests. Strict: warnings are errors (pyproject.toml), and rank promotion must be spelled out."""

import contextlib
import functools
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
from jax._src import compiler


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


@pytest.fixture(scope="module")
def quickly_compiled():
    """For files of tests that compile for minutes what runs for milliseconds, and that no rounding decides.

    XLA's older generator of code for fused operations takes half as long as today's. No public setting says so to what
    is compiled from here on alone: `XLA_FLAGS` would change the code of tests that rounding decides, too.
    """
    usual = compiler.get_compile_options
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "get_compile_options", functools.partial(with_older_fusions, usual))
        jax.config.update("jax_disable_most_optimizations", True)
        yield
        jax.config.update("jax_disable_most_optimizations", False)


def with_older_fusions(get_compile_options, *args, env_options_overrides=None, **more):
    options = {"xla_cpu_use_fusion_emitters": False} | (env_options_overrides or {})
    return get_compile_options(*args, env_options_overrides=options, **more)
