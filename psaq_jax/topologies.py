"""What XLA's compiler says of a synthesis step on TPU chips that are not there: nothing runs, and nothing is timed.

Beside the operations of a program the compiler writes how many cycles it expects of each, by the model of costs that it
plans programs with. It knows nothing of what really happens: a ratio of two programs says more than their cycles.
"""

import functools
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.experimental import topologies

from psaq_jax import meshes
from psaq_jax.benchmark import LEAST_ITERATIONS, environment, model_passes, peak_memory
from psaq_jax.cases import case_model
from psaq_jax.errors import InputError, reason_of
from psaq_jax.extras import require
from psaq_jax.synthesis.config import SynthesisConfig
from psaq_jax.synthesis.loop import initial_group, scan_chunk
from psaq_jax.synthesis.passes import prepared
from psaq_jax.text_tables import Table

COLUMNS = ("model", "batch", "dtype", "cycles/iteration", "model's passes, cycles", "overhead", "peak MB", "compile s")


def chip(topology: str) -> jax.Device:
    """The first chip of a topology, such as "v5e:2x2", for programs that are compiled and never run.

    Raises:
      InputError: libtpu is missing, or knows no such topology.
    """
    require("libtpu", "tpu")
    try:
        return topologies.get_topology_desc(topology, platform="tpu").devices[0]
    except (RuntimeError, ValueError) as error:
        found = f"the topology {topology!r} cannot be compiled for ({reason_of(error)})"
        raise InputError(f"{found}; expected TPU chips of one host or more, such as v5e:2x2") from None


def estimate(name: str, batch_size: int, dtype: str, device: jax.Device) -> dict[str, Any]:
    """One case on one chip: the fields of `launch/benchmark.py`, but cycles in the place of seconds."""
    config = SynthesisConfig(num_images=batch_size, group_size=batch_size)
    model = prepared(case_model(name).with_dtype(dtype), config)
    state = jax.eval_shape(functools.partial(initial_group, model, config), 0, 0)
    placed = meshes.over([device]).everywhere
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed), (model, state))

    def compiled(function):
        return jax.jit(function, out_shardings=placed).lower(*shapes).compile()

    began = time.perf_counter()
    step = compiled(lambda m, s: scan_chunk(m, config, s, 0, LEAST_ITERATIONS))
    compile_seconds = time.perf_counter() - began
    passes = compiled(lambda m, s: model_passes(m, s, LEAST_ITERATIONS))
    cycles, floor = (cycles_per_iteration(program.as_text()) for program in (step, passes))
    return {
        "model": name, "batch_size": batch_size, "device": f"{device.device_kind}, not there", "dtype": dtype,
        **environment(dtype), "cycles_per_iteration": cycles, "model_pass_cycles": floor,
        "overhead_ratio": cycles / floor, "peak_memory_bytes": peak_memory(step), "compile_seconds": compile_seconds,
    }  # fmt: skip


def cycles_per_iteration(text: str) -> int:
    """The sum of a compiled scan's estimates: of all but its entry, which runs once."""
    looped = re.sub(r"^ENTRY .*?^}", "", text, flags=re.DOTALL | re.MULTILINE)
    return sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', looped)))


def table(results: Sequence[Mapping[str, Any]]) -> Table:
    """What `estimate` found of each case."""
    note = (
        "Estimates of XLA's compiler for one chip that is not there; nothing was run. One iteration of the synthesis "
        "beside one forward and backward pass of the model with respect to the images. Peak memory is by the "
        "compiler's account."
    )
    return Table("Estimates for the synthesis", COLUMNS, list(map(_row, results)), len(COLUMNS), note)


def _row(r: Mapping[str, Any]) -> tuple[str, ...]:
    cycles = (f"{r[name]:,}" for name in ("cycles_per_iteration", "model_pass_cycles"))
    rest = f"{r['overhead_ratio']:.3f}", f"{r['peak_memory_bytes'] / 1e6:.0f}", f"{r['compile_seconds']:.1f}"
    return r["model"], str(r["batch_size"]), r["dtype"], *cycles, *rest


def answer(results: Sequence[Mapping[str, Any]]) -> str:
    """What the cases say, in a sentence."""
    told = [f"{r['model']} {r['overhead_ratio']:.2f}, {r['peak_memory_bytes'] / 1e9:.2g} GB" for r in results]
    return f"By the compiler's estimate an iteration is so many times the model's own passes: {'; '.join(told)}."
