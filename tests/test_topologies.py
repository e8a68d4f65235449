"""What the compiler says of chips that are not there: how it is read, and, where libtpu is installed, what it is."""

import importlib.util
import json

import pytest

from launch import benchmark as launch_benchmark
from psaq_jax import benchmark, topologies
from psaq_jax.errors import InputError
from tests import jobs

PROGRAM = """HloModule jit_step

%fused (x: f32[]) -> f32[] {
  ROOT %a = f32[] add(%x, %x)
}

%body (x: f32[]) -> f32[] {
  %f = f32[] fusion(%x), calls=%fused, backend_config={"window_config":{"estimated_cycles":"120","is_mask":false}}
  ROOT %c = f32[] copy(%f), backend_config={"window_config":{"estimated_cycles":"3"}}
}

ENTRY %main (x: f32[]) -> f32[] {
  %y = f32[] copy(%x), backend_config={"window_config":{"estimated_cycles":"1000"}}
  ROOT %w = f32[] while(%y), body=%body
}
"""
ROW = {
    "model": "m", "batch_size": 32, "dtype": "bfloat16", "device": "TPU v5 lite, not there", "overhead_ratio": 1.25,
    "cycles_per_iteration": 5000, "model_pass_cycles": 4000, "peak_memory_bytes": 2_000_000_000, "compile_seconds": 7.0,
}  # fmt: skip


def test_cycles_are_those_of_the_loop():
    assert topologies.cycles_per_iteration(PROGRAM) == 123
    assert topologies.cycles_per_iteration(PROGRAM + "\n%cond (x: f32[]) -> pred[] {\n}\n") == 123


def test_estimates_stand_in_the_place_of_times(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "measure", lambda *_, **__: pytest.fail("was timed"))
    monkeypatch.setattr(topologies, "chip", lambda topology: f"one of {topology}")
    monkeypatch.setattr(topologies, "estimate", lambda *case: ROW | {"xla_flags": str(case)})
    monkeypatch.setattr(launch_benchmark, "check_loadable", lambda cases: None)
    config = benchmark.BenchmarkConfig(("m",), dtype="bfloat16", topology="v5e:2x2")
    launch_benchmark.measure_cases(config, tmp_path)
    (written,) = json.loads((tmp_path / "benchmark.json").read_text())
    assert written == ROW | {"xla_flags": "('m', 32, 'bfloat16', 'one of v5e:2x2')"}
    cells = ["m", "32", "bfloat16", "5,000", "4,000", "1.250", "2000", "7.0"]
    assert capsys.readouterr().out.splitlines()[2].split() == cells
    page = (tmp_path / "report.html").read_text()
    assert "own passes: m 1.25, 2 GB." in page and "nothing was run" in page


def test_what_is_missing_is_named(tmp_path):
    found = topologies_of("nowhere", tmp_path)
    if importlib.util.find_spec("libtpu") is None:
        assert "libtpu: cannot be imported (No module named 'libtpu'); install it" in found and '".[tpu]"' in found
    else:
        assert "error: the topology 'nowhere' cannot be compiled for" in found


def test_there_is_no_profile_of_what_does_not_run(tmp_path):
    found = topologies_of("v5e:2x2", tmp_path, "--profile")
    assert "error: config.topology=v5e:2x2 runs nothing that could be profiled; leave --profile or the" in found


def topologies_of(topology, tmp_path, *more) -> str:
    given = (f"--config.topology={topology}", "--cases=deit_tiny", f"--workdir={tmp_path}", *more)
    done = jobs.launch("benchmark", "--config=configs/benchmark.py", *given)
    assert done.returncode == 2 and not list(tmp_path.glob("*.json")), done.stderr
    return done.stderr


def test_a_step_compiles_for_a_chip_that_is_not_there(tmp_path):
    pytest.importorskip("libtpu", reason="libtpu, which compiles for TPUs, is not installed (extra tpu)")
    try:
        chip = topologies.chip("v5e:2x2")
    except InputError as error:
        pytest.skip(str(error))
    found = topologies.estimate(str(jobs.shallow(tmp_path)), 2, "bfloat16", chip)
    assert 1 < found["overhead_ratio"] and 0 < found["model_pass_cycles"] < found["cycles_per_iteration"]
    assert found["peak_memory_bytes"] > 4 * 2 * 32 * 32 * 3 and found["device"] == "TPU v5 lite, not there"
