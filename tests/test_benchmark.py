"""What a benchmark case holds; not how long anything takes."""

import dataclasses
import gzip
import json
import os
import sys
import types

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import pytest

import configs.benchmark
import configs.latency
from launch import benchmark as launch_benchmark
from psaq_jax import benchmark, cases, files, save_quantized
from psaq_jax.config import from_mapping
from psaq_jax.errors import InputError
from psaq_jax.latency import LatencyConfig
from psaq_jax.models.vit import VisionTransformer
from psaq_jax.quantization import integer_plan
from psaq_jax.text_tables import Table
from tests import jobs, quick_compilation
from tests.export.small_models import SWINS, VITS, random_quantized
from tests.jobs import TINY


def test_a_case_has_the_fields_that_are_promised(tmp_path):
    told = []
    result = benchmark.measure(
        str(jobs.shallow(tmp_path)), batch_size=2, dtype="float32", repeats=3, least_seconds=0.01, profile=tmp_path,
        progress=lambda *at: told.append(at),
    )  # fmt: skip
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]  # one turn is not measured
    for name in ("seconds_per_iteration", "model_pass_seconds", "overhead_ratio", "processor_overhead_ratio"):
        assert 0 < result[f"{name}_min"] <= result[name] <= result[f"{name}_max"]
    assert result["peak_memory_bytes"] > 4 * 2 * 32 * 32 * 3 and result["compile_seconds"] > 0
    assert {"model", "batch_size", "device", "dtype"} <= set(result)
    assert result["jax"] == jax.__version__ and result["jaxlib"] == jaxlib.__version__
    assert result["matmul_precision"] == "highest" and result["xla_flags"] == os.environ.get("XLA_FLAGS", "")
    flops = result["flops_per_second"] * result["seconds_per_iteration"]
    np.testing.assert_allclose(flops, result["flops_per_iteration"])
    assert f" {result['processor_overhead_ratio']:.3f} (" in benchmark.table([result]).plain()
    (trace,) = tmp_path.glob("plugins/profile/*/perfetto_trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert any("fusion" in event.get("name", "") for event in events)  # the compiled operations
    assert list(trace.parent.glob("*.xplane.pb"))  # what XProf reads


def test_a_misspelt_case_is_named_before_the_others_are_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "measure", lambda *_, **__: pytest.fail("was measured"))
    config = benchmark.BenchmarkConfig((str(TINY), str(TINY.parent / "deit_tny")))
    with pytest.raises(InputError, match="deit_tny.*cases are sources of models, or deit_tiny, deit_small"):
        launch_benchmark.measure_cases(config, tmp_path)


@pytest.mark.parametrize("kind", [benchmark.BenchmarkConfig, LatencyConfig])
def test_no_case_at_all_is_refused(kind):
    """As --cases= gives: not the config's whole list in its place."""
    with pytest.raises(InputError, match="cases is empty, expected some of deit_tiny, deit_small"):
        dataclasses.replace(kind((str(TINY),)), cases=())


def test_runs_take_turns(monkeypatch):
    calls = []

    def spy(run, model, state, length):
        calls.append(run)
        return benchmark.Seconds(len(calls), 1.0)

    monkeypatch.setattr(benchmark, "_time", spy)
    steps, passes = benchmark._interleave("step", "passes", None, None, 1, repeats=2)
    assert calls == ["passes", "step", "step", "passes", "passes", "step"]
    assert [t.wall for t in steps] == [3, 6] and [t.wall for t in passes] == [4, 5]


@pytest.mark.parametrize("name, width, heads", [("deit_tiny", 192, 3), ("deit_small", 384, 6), ("deit_base", 768, 12)])
def test_shapes_are_the_published_ones(name, width, heads):
    """Touvron et al., 2021, table 1, and the patches' size in the models' names."""
    with quick_compilation.quickly():
        model = cases.case_model(name)
    assert model.module == VisionTransformer((224, 224), (16, 16), width, 12, heads, 4 * width, 1000)
    assert model.params["patch_embedding"]["kernel"].shape == (768, width)


def test_forward_flops_are_the_compilers():
    module = VisionTransformer((64, 64), (8, 8), 96, 3, 3, 384, 10)
    pixels = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), pixels)
    compiled = jax.jit(module.apply).lower(variables, pixels).compile()
    counted = compiled.cost_analysis()["flops"]
    # The compiler counts softmax, LayerNorm and GELU too; ours are the products alone.
    assert 0.85 * counted < benchmark.forward_flops(module, 2) <= counted


@pytest.mark.parametrize("module", (VITS | SWINS).values(), ids=VITS | SWINS)
def test_forward_flops_are_those_of_all_products(module):
    """Of two heads, registers, SwiGLU and padded windows too: what the plan of integer products counts."""
    products = integer_plan.plan(random_quantized(module))
    assert benchmark.forward_flops(module, 3) == 2 * 3 * sum(product.multiply_adds for product in products)


@pytest.mark.parametrize(
    "name, published",
    [("deit_tiny", 1.3), ("deit_small", 4.6), ("deit_base", 17.6), ("swin_tiny", 4.5), ("swin_small", 8.7)],
)
def test_forward_flops_are_the_published_ones(name, published):
    """Billions of multiply-adds: the model cards of timm, and Liu et al., 2021, table 1."""
    module = cases.read_architecture({"architecture": cases.SHAPES[name]}, name).module
    assert benchmark.forward_flops(module, 1) / 2e9 == pytest.approx(published, abs=0.06)


def test_peak_memory_counts_what_is_written_in_place_once():
    found = types.SimpleNamespace(
        argument_size_in_bytes=1000, output_size_in_bytes=200, temp_size_in_bytes=30, alias_size_in_bytes=4
    )
    assert benchmark.peak_memory(types.SimpleNamespace(memory_analysis=lambda: found)) == 1226


def test_a_spread_is_median_least_and_greatest():
    assert benchmark.spread("x", [9.0, 1.0, 2.0]) == {"x": 2.0, "x_min": 1.0, "x_max": 9.0}


def test_the_table_has_its_figures_in_their_columns():
    row = {
        "model": "m", "batch_size": 32, "dtype": "float32", **benchmark.spread("seconds_per_iteration", [0.25]),
        "model_pass_seconds": 0.125, **benchmark.spread("overhead_ratio", [2.0, 1.0, 3.0]),
        "peak_memory_bytes": 5_000_000, "compile_seconds": 7.0, "flops_per_second": 2.5e11,
    }  # fmt: skip
    cells = "m 32 float32 250.0 (250.0..250.0) 125.0 2.000 (1.000..3.000) - 0.25 5 7.0".split()
    assert benchmark.table([row]).plain().splitlines()[-1].split() == cells
    fast = row | {"flops_per_second": 3.3709e14, "share_of_bf16_peak": 0.34084, "fused_attention": "cudnn"}
    found = benchmark.table([fast]).plain().splitlines()[-1].split()
    assert found == [*cells[:2], "float32,", "cudnn", *cells[3:9], "337", "(34", "%)", *cells[10:]]
    on_a_cpu = row | benchmark.spread("processor_overhead_ratio", [1.5])
    cells[8:9] = ["1.500", "(1.500..1.500)"]
    assert benchmark.table([on_a_cpu]).plain().splitlines()[-1].split() == cells


def test_the_page_has_the_table_and_the_answer(tmp_path, monkeypatch):
    row = {
        "model": "m", "batch_size": 32, "dtype": "float32", "device": "d", **benchmark.spread("overhead_ratio", [2.0]),
        "model_pass_seconds": 0.125, **benchmark.spread("seconds_per_iteration", [0.25]),
        "peak_memory_bytes": 5_000_000, "compile_seconds": 7.0, "flops_per_second": 2.5e11,
    }  # fmt: skip
    monkeypatch.setattr(benchmark, "measure", lambda *_, **__: row)
    monkeypatch.setattr(launch_benchmark, "check_loadable", lambda cases: None)
    monkeypatch.setattr(launch_benchmark, "PROFILE", types.SimpleNamespace(value=False))
    monkeypatch.setattr(launch_benchmark.console, "bar", lambda title: None)
    launch_benchmark.measure_cases(benchmark.BenchmarkConfig(("m",)), tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert (
        "the model&#39;s own passes that is: m 0.25 s, 2.00." in page
        and '<td class="">250.0 (250.0..250.0)</td>' in page
    )


def test_without_the_extra_for_pages_a_run_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)  # as where it is not installed
    table = Table("Speed", ("model", "ms"), [("m", "1")])
    page = launch_benchmark.pages.write_tables(
        tmp_path, benchmark.BenchmarkConfig(("m",)), [table], heading="m", kind="speed report", lead="Fast."
    )
    assert page.startswith("not written, jinja2: cannot be imported") and '-m pip install ".[report]"' in page
    assert not list(tmp_path.iterdir())


def test_a_latency_run_ends_with_its_page(tmp_path):
    case = jobs.shallow(tmp_path)
    few = ("--config.batch_sizes=(1,)", "--config.repeats=1", "--quiet")
    done = jobs.launch("latency", "--config=configs/latency.py", f"--cases={case}", f"--workdir={tmp_path}", *few)
    assert done.returncode == 0, done.stderr
    found, page = json.loads((tmp_path / "latency.json").read_text()), (tmp_path / "report.html").read_text()
    ratio = next(row["times_float32"] for row in found["rows"] if row["execution"] == "integer")
    assert f"{case} at batch 1 {ratio:.2f}." in page
    assert all(f'<td class="">{product["name"]}</td>' in page for product in found["products"][str(case)])
    assert integer_plan.summary([integer_plan.MatrixProduct(**p) for p in found["products"][str(case)]]) in page


def test_a_damaged_artefact_is_known_before_the_others_are_measured(tmp_path):
    artefact = save_quantized(random_quantized(), tmp_path / "artefact")
    files.write_bytes(artefact / "model.safetensors", (artefact / "model.safetensors").read_bytes()[:-1])
    done = jobs.launch("latency", "--config=configs/latency.py", f"--cases={TINY},{artefact}", f"--workdir={tmp_path}")
    assert done.returncode == 2 and "model.safetensors: has " in done.stderr and "%" not in done.stderr


JOBS = {benchmark.BenchmarkConfig: configs.benchmark, LatencyConfig: configs.latency}


@pytest.mark.parametrize("kind, changes, message", [
    (benchmark.BenchmarkConfig, {"repeats": 0}, "repeats is 0, expected a whole number of at least 1"),
    (benchmark.BenchmarkConfig, {"batch_size": 2.5}, "config.batch_size is 2.5, expected int"),
    (benchmark.BenchmarkConfig, {"dtype": "x"}, "dtype is 'x', known are float32, bfloat16"),
    (benchmark.BenchmarkConfig, {"cases": ()}, "cases is empty, expected some of deit_tiny"),
    (benchmark.BenchmarkConfig, {"fused_attention": "x"}, "fused_attention is 'x', known are cudnn, xla"),
    (benchmark.BenchmarkConfig, {"fused_attention": "xla", "topology": "v5e:2x2"}, "chips are TPUs; leave either out"),
    (LatencyConfig, {"repeats": -1}, "repeats is -1, expected a whole number of at least 1"),
    (LatencyConfig, {"batch_sizes": (1, 0)}, "batch_sizes is (1, 0), expected whole numbers from 1"),
    (LatencyConfig, {"batch_sizes": (1, 10**9)}, "expected whole numbers from 1 to 1000000"),
    (benchmark.BenchmarkConfig, {"batch_size": 10**9}, "batch_size is 1000000000, expected a whole number from 1 to"),
    (LatencyConfig, {"batch_sizes": ()}, "batch_sizes is (), expected whole numbers from 1"),
    (LatencyConfig, {"bits": "w4"}, "bits has 'w4', expected a form such as"),
    (LatencyConfig, {"bits": "w4a32"}, "bits is 'w4a32', expected whole bits of weights and activations"),
    (LatencyConfig, {"bits": "auto:4.5a8"}, "bits is 'auto:4.5a8', expected whole bits"),
    (LatencyConfig, {"bit": "w8a8"}, "config.bit is not a known field; did you mean 'bits'"),
])  # fmt: skip
def test_bad_settings_are_named(kind, changes, message):
    settings = JOBS[kind].get_config().to_dict()
    assert from_mapping(kind, settings).cases == settings["cases"]
    with pytest.raises(InputError) as error:
        from_mapping(kind, settings | changes)
    assert message in str(error.value) and "\n" not in str(error.value)
