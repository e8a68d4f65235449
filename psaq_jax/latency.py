"""Latency and memory of a model in float32, in bfloat16, in simulated quantization and on integers, in one run."""

import dataclasses
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from psaq_jax.benchmark import peak_memory, spread
from psaq_jax.cases import LARGEST_BATCH, case_model, check_cases
from psaq_jax.checks import check_whole
from psaq_jax.config import has_whole_bits
from psaq_jax.errors import InputError
from psaq_jax.machine import device_name
from psaq_jax.models.model import Model
from psaq_jax.progress import Progress
from psaq_jax.quantization.artefact import is_artefact, load_quantized
from psaq_jax.quantization.calibration import calibrate
from psaq_jax.quantization.integer import integer_model
from psaq_jax.quantization.integer_plan import coverage
from psaq_jax.quantization.transform import QuantizedModel, dequantize_params, quantize
from psaq_jax.text_tables import Table

COLUMNS = ("model", "batch", "execution", "ms/batch (min..max)", "images/s", "x float32", "weights MB", "peak MB", "")


@dataclasses.dataclass(frozen=True)
class LatencyConfig:
    """The settings of `launch.latency`.

    Attributes:
      cases: sources of `executions`. bits: of cases that are not artefacts. repeats: interleaved rounds.
    """

    cases: tuple[str, ...]
    batch_sizes: tuple[int, ...] = (1, 32)
    bits: str = "w8a8"
    repeats: int = 7

    def __post_init__(self):
        check_cases(self.cases)
        if not self.batch_sizes or not 1 <= min(self.batch_sizes) <= max(self.batch_sizes) <= LARGEST_BATCH:
            raise InputError(f"batch_sizes is {self.batch_sizes!r}, expected whole numbers from 1 to {LARGEST_BATCH}")
        check_whole("repeats", self.repeats, 1)
        if not has_whole_bits(self.bits, "bits"):
            raise InputError(f"bits is {self.bits!r}, expected whole bits of weights and activations, such as 'w8a8'")


def executions(source: str, weight_bits: int = 8, activation_bits: int = 8) -> dict[str, Model | QuantizedModel]:
    """{"float32", "bfloat16", "simulated", "integer"}: one model in four executions.

    Args:
      source: an artefact's folder, whose float model has its dequantized weights; or what `case_model` takes, which
        is quantized by the paper's recipe at ranges of noise (speed does not depend on their values).
    """
    if is_artefact(source):
        q = load_quantized(source)
        model = Model(dequantize_params(q.params), q.module, q.labels, q.preprocessing, q.source)
    else:
        model = case_model(source)
        noise = np.asarray(jax.random.normal(jax.random.key(0), (2, *model.image_shape)))
        q = quantize(model, calibrate(model, noise), weight_bits, activation_bits)
    return {
        "float32": model.with_dtype(jnp.float32), "bfloat16": model.with_dtype(jnp.bfloat16), "simulated": q,
        "integer": integer_model(q),
    }  # fmt: skip


def measure(
    name: str,
    models: Mapping[str, Model | QuantizedModel],
    batch_sizes: Sequence[int] = (1, 32),
    repeats: int = 7,
    least_seconds: float = 0.2,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Times each model at each batch size, interleaved, so that a slow spell of the machine meets all of them.

    Args:
      repeats: rounds; each gives one time, the mean over as many calls as fill `least_seconds`.
    Returns:
      A row a batch size and execution: seconds (median of the rounds), seconds_min, seconds_max, images_per_second,
      times_float32 (seconds over float32's), weight_bytes, peak_memory_bytes (weights, images, logits and
      temporaries by the compiler's account), compile_seconds, integer_share (of multiply-adds; integers only).
    """
    rows = []
    for k, size in enumerate(batch_sizes):
        cases = {execution: _compile(model, size) for execution, model in models.items()}
        calls = {e: max(1, round(least_seconds / _seconds(c[0], 1))) for e, c in cases.items()}
        times = {execution: [] for execution in cases}
        for i in range(repeats):
            for execution, (call, *_) in cases.items():
                times[execution].append(_seconds(call, calls[execution]))
            if progress:
                progress(k * repeats + i + 1, repeats * len(batch_sizes))
        floats = statistics.median(times["float32"]) if "float32" in times else None
        for execution, (_, compiled, compile_seconds) in cases.items():
            model, measured = models[execution], spread("seconds", times[execution])
            seconds = measured["seconds"]
            row = {
                "model": name, "device": device_name(), "batch_size": size, "execution": execution,
                **measured,
                "images_per_second": size / seconds, "times_float32": floats and seconds / floats,
                "weight_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(model)),
                "peak_memory_bytes": peak_memory(compiled), "compile_seconds": compile_seconds, "repeats": repeats,
            }  # fmt: skip
            if hasattr(model, "products"):
                row["integer_share"] = coverage(model.products)
            rows.append(row)
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The rows. The last column says where integers are slower than float32, by the medians."""
    lines = []
    for r in rows:
        low, high = r["seconds_min"] * 1e3, r["seconds_max"] * 1e3
        ratio = r["times_float32"]
        remark = "slower than float32" if r["execution"] == "integer" and ratio and ratio > 1 else ""
        lines.append((
            r["model"], str(r["batch_size"]), r["execution"], f"{r['seconds'] * 1e3:.2f} ({low:.2f}..{high:.2f})",
            f"{r['images_per_second']:.0f}", f"{ratio:.2f}" if ratio else "-", f"{r['weight_bytes'] / 1e6:.2f}",
            f"{r['peak_memory_bytes'] / 1e6:.2f}", remark,
        ))  # fmt: skip
    note = (
        "Medians of interleaved rounds, least and greatest. Peak memory: weights, images, logits and temporaries, by "
        "the compiler's account."
    )
    return Table("Latency", COLUMNS, lines, 3, note)


def answer(rows: Sequence[Mapping[str, Any]]) -> str:
    """What integers cost or save, in a sentence."""
    told = [
        f"{r['model']} at batch {r['batch_size']} {r['times_float32']:.2f}"
        for r in rows
        if r["execution"] == "integer" and r["times_float32"]
    ]
    return f"Integer execution's time over float32's: {'; '.join(told)}."


def _compile(model, size: int):
    """(a call that waits for its result, the compiled function, seconds it took to compile)."""
    pixels = jax.random.normal(jax.random.key(1), (size, *model.image_shape))
    began = time.perf_counter()
    compiled = jax.jit(lambda model, pixels: model(pixels)).lower(model, pixels).compile()
    seconds = time.perf_counter() - began

    def call():
        jax.block_until_ready(compiled(model, pixels))

    call()
    return call, compiled, seconds


def _seconds(call, times: int) -> float:
    began = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - began) / times
