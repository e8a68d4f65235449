"""The job from the command line: one line and exit code 2 for what cannot be exported."""

import json
import os
import pathlib
import subprocess
import sys

from psaq_jax import save_quantized
from psaq_jax.workdir import results_folder
from tests import jobs
from tests.export.small_models import random_quantized
from tests.report.parsed import Parsed, assert_complete

ROOT = pathlib.Path(__file__).parents[2]


def launch(*arguments):
    command = [sys.executable, "-m", "launch.export", *arguments]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def test_an_artefact_becomes_stablehlo(tmp_path, monkeypatch):
    """In JAX's x64 mode too."""
    monkeypatch.setenv("JAX_ENABLE_X64", "1")
    save_quantized(random_quantized(), tmp_path / "q")
    done = launch(f"--config.model={tmp_path / 'q'}", "--execution=integer", f"--workdir={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    written = [".lock", "export.json", "model.stablehlo", "report.html"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == written
    assert "model.stablehlo" in done.stdout and f"report: {tmp_path / 'out' / 'report.html'}" in done.stdout
    description = json.loads((tmp_path / "out" / "export.json").read_text())
    page = Parsed((tmp_path / "out" / "report.html").read_text())
    assert_complete(page)
    checksum, height, width = description["files"]["model.stablehlo"], *description["preprocessing"]["image_size"]
    for shown in (checksum, f"pixels: float32 [batch, {height}, {width}, 3]", "block_0/attention/query_key"):
        assert shown in page.text
    before = sorted((tmp_path / "q").iterdir())
    done = launch(f"--config.model={tmp_path / 'q'}", "--format=onnx", f"--workdir={tmp_path / 'q'}")
    assert done.returncode == 2 and "holds a saved quantized model" in done.stderr
    assert sorted((tmp_path / "q").iterdir()) == before


def test_weights_beside_an_onnx_file_are_refused(tmp_path):
    arguments = "--format=onnx", "--weights=beside", f"--workdir={tmp_path / 'out'}"
    done = launch("--config.model=bundled:fashion_mnist_vit", *arguments)
    assert done.returncode == 2 and done.stderr.startswith("error: --weights=beside is for StableHLO")
    assert not (tmp_path / "out").exists()


def test_integers_of_a_float_model_are_refused(tmp_path):
    done = launch("--config.model=bundled:fashion_mnist_vit", "--execution=integer", f"--workdir={tmp_path / 'out'}")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: --execution=integer is for saved quantized models")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_will_not_do_is_known_before_the_work(tmp_path):
    """And two do not export into one at once."""
    (tmp_path / "file").write_text("")
    with results_folder(tmp_path / "busy"):
        for name, message in (("file", "cannot be written (File exists)"), ("busy", "another run is at work there")):
            workdir = f"--workdir={tmp_path / name}"
            done = launch(f"--config.model={jobs.TINY}", "--format=onnx", workdir)
            assert done.returncode == 2 and done.stderr.startswith(f"error: {workdir}: {message}"), done.stderr
