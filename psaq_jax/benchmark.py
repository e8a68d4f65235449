"""Speed of one synthesis step beside the model's own passes: interleaved in one run, medians with spread.

The floor of a step is one forward and one backward pass with respect to the images. Both are timed as a scan of the
same length over the same images, so that their quotient shows what the loss, the priors and Adam cost on top.
"""

import dataclasses
import functools
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jaxlib
import numpy as np
import optax
from flax import traverse_util

from psaq_jax.cases import LARGEST_BATCH, case_model, check_cases
from psaq_jax.checks import check_choice, check_whole
from psaq_jax.comparison.release_adapter.process_memory import peak_process_memory
from psaq_jax.config import DTYPES
from psaq_jax.errors import InputError
from psaq_jax.machine import device_name
from psaq_jax.models.layers import matrix_products
from psaq_jax.models.loading import abstract_params
from psaq_jax.models.model import Model, exact_products
from psaq_jax.progress import Progress
from psaq_jax.synthesis.config import FUSED_ATTENTIONS, SynthesisConfig
from psaq_jax.synthesis.loop import initial_group, scan_chunk
from psaq_jax.synthesis.passes import prepared
from psaq_jax.text_tables import Table

BF16_PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "TPU v5 lite": 197e12, "TPU v6 lite": 918e12}

# A call's own costs, such as getting a gigabyte of scratch memory from the system, are shared by its iterations, as in
# `synthesize`.
LEAST_ITERATIONS = 3
COLUMNS = (
    "model", "batch", "dtype", "ms/iteration (min..max)", "model's passes, ms", "overhead (min..max)",
    "by processor time", "TFLOP/s (of the peak)", "peak MB", "compile s",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig:
    """The settings of `launch.benchmark`.

    Attributes:
      cases: sources of `case_model`. batch_size: images of a group. dtype: of the passes. repeats: interleaved pairs.
      topology: "", or TPU chips to compile for, such as "v5e:2x2", which need not be there: nothing is timed.
      fused_attention: as in `SynthesisConfig`, of the step and of the model's passes beside it.
    """

    cases: tuple[str, ...]
    batch_size: int = 32
    dtype: str = "float32"
    repeats: int = 5
    topology: str = ""
    fused_attention: str | None = None

    def __post_init__(self):
        check_cases(self.cases)
        check_whole("batch_size", self.batch_size, 1, LARGEST_BATCH)
        check_whole("repeats", self.repeats, 1)
        check_choice("dtype", self.dtype, DTYPES)
        if self.fused_attention is not None:
            check_choice("fused_attention", self.fused_attention, FUSED_ATTENTIONS)
            if self.topology:
                found = f"fused_attention is {self.fused_attention!r}, and a topology's chips are TPUs"
                raise InputError(f"{found}; leave either out")


class Seconds(NamedTuple):
    """Of one iteration: by the clock, and of processor time of all threads, which other processes disturb less."""

    wall: float
    processor: float


def measure(
    name: str, batch_size: int, dtype: str, repeats: int = 5, least_seconds: float = 1.0, profile=None,
    progress: Progress | None = None, fused_attention: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """One case: see `launch/benchmark.py` for the fields. Times are medians of `repeats`, with minimum and maximum.

    `profile` is a folder to write a trace of the step to, for XProf and Perfetto; it is taken after the timing.
    """
    config = SynthesisConfig(num_images=batch_size, group_size=batch_size, fused_attention=fused_attention)
    plain = case_model(name).with_dtype(dtype)
    model = prepared(plain, config)
    state = jax.jit(functools.partial(initial_group, model, config))(0, 0)
    began = time.perf_counter()
    step = _compile(lambda m, s, n: scan_chunk(m, config, s, 0, n), model, state, 1)
    compile_seconds = time.perf_counter() - began
    warm = [_time(step, model, state).wall for _ in range(2)][1]
    length = max(LEAST_ITERATIONS, min(50, int(least_seconds / warm)))
    step = _compile(lambda m, s, n: scan_chunk(m, config, s, 0, n), model, state, length)
    passes = _compile(model_passes, model, state, length)
    steps, floors = _interleave(step, passes, model, state, length, repeats, progress)
    if profile:
        write_profile(step, model, state, profile)
    device = jax.devices()[0]
    result = {
        "model": name, "batch_size": batch_size, "device": device_name(), "dtype": dtype,
        "fused_attention": fused_attention,
        **environment(dtype),
        **spread("seconds_per_iteration", [t.wall for t in steps]),
        **spread("model_pass_seconds", [t.wall for t in floors]),
        **spread("overhead_ratio", [a.wall / b.wall for a, b in zip(steps, floors, strict=True)]),
        "peak_memory_bytes": peak_memory(step),
        "process_peak_bytes": peak_process_memory(),
        "compile_seconds": compile_seconds, "repeats": repeats, "iterations_per_repeat": length,
    }  # fmt: skip
    if device.platform == "cpu":
        ratios = [a.processor / b.processor for a, b in zip(steps, floors, strict=True)]
        result |= spread("processor_overhead_ratio", ratios)
    flops = 2 * forward_flops(plain.module, batch_size)
    result |= {"flops_per_iteration": flops, "flops_per_second": flops / result["seconds_per_iteration"]}
    if peak := next((v for kind, v in BF16_PEAK.items() if kind in device.device_kind), None):
        result["share_of_bf16_peak"] = result["flops_per_second"] / peak
    return result


def table(results: Sequence[Mapping[str, Any]]) -> Table:
    """What `measure` found of each case."""
    note = (
        "One iteration of the synthesis beside one forward and backward pass of the model with respect to the images, "
        "in interleaved pairs: medians, least and greatest. Overhead by processor time holds on a busy machine too. "
        "Operations are twice the products of a forward pass, the chip's peak is that of bfloat16. Peak memory is by "
        "the compiler's account."
    )
    return Table("Speed of the synthesis", COLUMNS, list(map(_row, results)), len(COLUMNS), note)


def answer(results: Sequence[Mapping[str, Any]]) -> str:
    """What the cases say, in a sentence."""
    told = [f"{r['model']} {r['seconds_per_iteration']:.3g} s, {r['overhead_ratio']:.2f}" for r in results]
    return f"An iteration, and how many times the model's own passes that is: {'; '.join(told)}."


def _row(r: Mapping[str, Any]) -> tuple[str, ...]:
    low, high = r["seconds_per_iteration_min"] * 1e3, r["seconds_per_iteration_max"] * 1e3
    passes = ", ".join(filter(None, (r["dtype"], r.get("fused_attention"))))
    share = f" ({100 * r['share_of_bf16_peak']:.0f} %)" if "share_of_bf16_peak" in r else ""
    return (
        r["model"], str(r["batch_size"]), passes, f"{r['seconds_per_iteration'] * 1e3:.1f} ({low:.1f}..{high:.1f})",
        f"{r['model_pass_seconds'] * 1e3:.1f}", _ratio(r, "overhead_ratio"), _ratio(r, "processor_overhead_ratio"),
        f"{r['flops_per_second'] / 1e12:.3g}{share}",
        f"{r['peak_memory_bytes'] / 1e6:.0f}", f"{r['compile_seconds']:.1f}",
    )  # fmt: skip


def _ratio(r: Mapping[str, Any], name: str) -> str:
    return f"{r[name]:.3f} ({r[f'{name}_min']:.3f}..{r[f'{name}_max']:.3f})" if name in r else "-"


def environment(dtype: str) -> dict[str, str]:
    """What speed depends on beside the device: the versions, XLA's flags and the precision of the model's products."""
    with exact_products(dtype):
        precision = jax.config.jax_default_matmul_precision
    return {
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "matmul_precision": precision,
    }


def _interleave(
    step, passes, model, state, length: int, repeats: int, progress: Progress | None = None
) -> tuple[list[Seconds], list[Seconds]]:
    """Seconds an iteration of both, `repeats` times, in turns.

    They change places from turn to turn, so that a machine that warms up or slows down favours neither, and a slow
    spell meets both of a pair; one unmeasured turn comes first.
    """
    pairs = []
    for i in range(repeats + 1):
        order = (step, passes) if i % 2 else (passes, step)
        times = {id(run): _time(run, model, state, length) for run in order}
        pairs.append((times[id(step)], times[id(passes)]))
        if progress:
            progress(i + 1, repeats + 1)
    steps, floors = zip(*pairs[1:], strict=True)
    return list(steps), list(floors)


def write_profile(compiled, model, state, folder) -> None:
    """One call of a compiled chunk as a trace: plugins/profile/TIME holds what XProf and Perfetto open."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # the operations, not the interpreter's calls
    with jax.profiler.trace(folder, create_perfetto_trace=True, profiler_options=options):
        jax.block_until_ready(compiled(model, state))


def model_passes(model: Model, state, length: int):
    """`length` forward and backward passes with respect to the images, cross-entropy only; each feeds the next."""

    def loss(images):
        logits = model.apply(images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, state.labels).mean()

    def body(images, _):
        return images - 1e-3 * jax.grad(loss)(images), None

    return jax.lax.scan(body, state.variables, None, length=length)[0]


def forward_flops(module: nn.Module, batch_size: int) -> int:
    """Floating-point operations of the matrix products of one forward pass (a multiply-add counts as two)."""
    params = traverse_util.unflatten_dict(abstract_params(module), sep="/")
    pixels = jax.ShapeDtypeStruct((batch_size, *module.image_size, 3), np.float32)
    return 2 * sum(multiply_adds for *_, multiply_adds in matrix_products(module, params, pixels))


def peak_memory(compiled) -> int:
    """Bytes that a compiled function needs at its peak, by the compiler's own account."""
    m = compiled.memory_analysis()
    return m.argument_size_in_bytes + m.output_size_in_bytes + m.temp_size_in_bytes - m.alias_size_in_bytes


def _compile(function, model, state, length: int):
    return jax.jit(function, static_argnums=2).lower(model, state, length).compile()


def _time(compiled, model, state, length: int = 1) -> Seconds:
    wall, processor = time.perf_counter(), time.process_time()
    jax.block_until_ready(compiled(model, state))
    return Seconds((time.perf_counter() - wall) / length, (time.process_time() - processor) / length)


def spread(name: str, values: list[float]) -> dict[str, float]:
    """Median, least and greatest of times, or of their quotients."""
    return {
        name: statistics.median(values),
        f"{name}_min": float(np.min(values)),
        f"{name}_max": float(np.max(values)),
    }
