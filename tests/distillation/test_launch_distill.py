"""The job as users start it: what it writes, that it goes on after being killed, and one line for bad input."""

import json
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import psaq_jax
from psaq_jax import files, resumption
from tests import quick_recipe
from tests.jobs import settings, shallow

SMALL = (
    "--config.data=", "--config.quantization.bits=('w6a8',)",
    "--config.synthesis.num_images=4", "--config.synthesis.group_size=4", "--config.synthesis.iterations=4",
    "--config.distillation.cycles=3", "--config.distillation.generator_iterations=4",
    "--config.distillation.student_steps=4", "--config.distillation.batch_size=4", "--checkpoint_seconds=0",
    *quick_recipe.FLAGS,
)  # fmt: skip


def command(cache, workdir, *arguments):
    base = [sys.executable, "-m", "launch.distill", "--config=configs/distill.py", f"--workdir={workdir}"]
    return base + [f"--config.model={shallow(cache)}", *SMALL, *arguments]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Of the model and of what is compiled."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cache):
    workdir = tmp_path_factory.mktemp("run") / "workdir"
    done = subprocess.run(command(cache, workdir), timeout=600, **settings(cache))
    assert done.returncode == 0, done.stderr
    return workdir, done


def test_writes_both_models_and_one_table(finished):
    workdir, done = finished
    results = json.loads((workdir / "results.json").read_text())
    assert [(r["recipe"], r["bits"], r["calibration"]) for r in results["runs"]] == [
        ("default", "w6a8", "synthesized"), ("distill", "w6a8", "synthesized"),
    ]  # fmt: skip
    assert results["distillation"]["w6a8"]["images"] == 4 + 3 * 4
    pixels = np.load(workdir / "images" / "synthesized.npy")
    models = {name: psaq_jax.load_quantized(workdir / "quantized" / f"w6a8-{name}-synthesized") for name in
              ("default", "distill")}  # fmt: skip
    assert np.abs(np.asarray(models["default"](pixels)) - np.asarray(models["distill"](pixels))).max() > 0
    assert (workdir / "distillation" / "w6a8" / "generated.png").stat().st_size > 1000
    assert "agreement" in done.stdout and "distill" in done.stdout and "distill w6a8: 100%" in done.stderr


def test_ends_with_a_page_and_curves(finished):
    workdir, done = finished
    page = (workdir / "report.html").read_text()
    for part in (
        "Calibration images", "Synthesis loss by term", "Distillation loss by term, w6a8",
        "student: discrepancy of the blocks", "Sensitivity", "Integer coverage", "launch.distill",
    ):  # fmt: skip
        assert part in page, part
    history = resumption.read_npz(workdir / "distillation" / "w6a8" / "history.npz")
    assert {len(values) for values in history.values()} == {3 * 4}
    (events,) = (workdir / "metrics").glob("events.*")
    written = events.read_bytes()
    assert all(f"distillation/w6a8/{term}".encode() in written for term in history) and b"synthesis/loss" in written
    assert str(workdir / "report.html") in done.stdout


def test_a_killed_job_ends_with_the_same_bits(finished, cache, tmp_path):
    workdir, _ = finished
    running = tmp_path / "killed" / "distillation" / "w6a8" / "running"
    for sent in (signal.SIGKILL, signal.SIGTERM):
        process = subprocess.Popen(command(cache, tmp_path / "killed"), **settings(cache))
        before = {path.name for path in running.glob("*")}
        while process.poll() is None and {path.name for path in running.glob("*")} == before:
            time.sleep(0.005)  # until this process writes its first checkpoint
        process.send_signal(sent)
        process.communicate(timeout=600)
    summary, left = running.parent / "summary.json", tmp_path / "killed" / "reconstruction" / "of_the_start.npz"
    for _ in range(2):  # and once more where a disk has damaged what is beside the student
        files.write_bytes(left, b"")
        done = subprocess.run(command(cache, tmp_path / "killed"), timeout=600, **settings(cache))
        assert done.returncode == 0, done.stderr
        assert not left.exists()
        assert "w6a8-default-synthesized quantize" not in done.stderr  # the start is saved
        assert models(tmp_path / "killed") == models(workdir)
        assert json.loads(summary.read_text())["images"] == 4 + 3 * 4
        summary.write_bytes(b"{")


def test_a_damaged_start_is_made_again(finished, cache, tmp_path):
    workdir, _ = finished
    shutil.copytree(workdir, tmp_path / "run")
    (tmp_path / "run" / "quantized" / "w6a8-default-synthesized" / "config.json").write_text("{")
    done = subprocess.run(command(cache, tmp_path / "run"), timeout=600, **settings(cache))
    assert done.returncode == 0, done.stderr
    assert "w6a8-default-synthesized quantize: 100%" in done.stderr and "distill w6a8: " not in done.stderr
    assert models(tmp_path / "run") == models(workdir)


def models(workdir: pathlib.Path) -> dict[str, bytes]:
    """{name: content} of all files of the saved models."""
    folder = workdir / "quantized"
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


BAD = {
    "cycles": (("--config.distillation.cycles=0",), "distillation.cycles is 0"),
    "unknown field": (("--config.distillation.cycle=3",), "did you mean 'cycles'"),
    "calibration": (("--config.calibration=('real',)",), "calibration is ('real',)"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_exit_code_2(name, cache, tmp_path):
    arguments, message = BAD[name]
    done = subprocess.run(command(cache, tmp_path / "w", *arguments), timeout=600, **settings(cache))
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and len(lines) == 1 and message in lines[0], done.stderr
    assert "Traceback" not in done.stderr
