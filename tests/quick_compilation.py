"""Compiling without most optimizations: for what runs for milliseconds, and whose rounding decides nothing."""

import contextlib
import functools

import pytest
from jax._src import compiler

OPTIONS = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,  # today's generator of code for fused operations takes twice as long
}
FLAGS = " ".join(f"--{name}={str(value).lower()}" for name, value in OPTIONS.items())  # XLA_FLAGS of another process


@contextlib.contextmanager
def quickly():
    """Inside, compiling takes a quarter of the time.

    No public setting says so to what is compiled from here on alone: `XLA_FLAGS` would change the code of tests that
    rounding decides, too.
    """
    usual = compiler.get_compile_options
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "get_compile_options", functools.partial(without_optimizations, usual))
        yield


def without_optimizations(get_compile_options, *args, env_options_overrides=None, **more):
    return get_compile_options(*args, env_options_overrides=OPTIONS | (env_options_overrides or {}), **more)
