"""`launch.curve`: sweeps of several iteration counts in one picture, and what it refuses."""

import json
import shutil

import pytest
from PIL import Image

from psaq_jax.errors import InputError
from psaq_jax.sweep import slug
from psaq_jax.sweep_curves import read_sweeps
from psaq_jax.workdir import local_folder
from tests.report.samples import results
from tests.test_launch import launch


def write_sweep(folder, iterations, bandwidth=0.01, seeds=(0, 1), **settings):
    folder.mkdir(parents=True)
    synthesis = {"iterations": iterations, "bandwidth": bandwidth}
    config = {"data": "bundled:fashion_mnist", "synthesis": synthesis} | settings
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "runs.json").write_text(json.dumps([results(seeds=seeds)]))


def test_draws_a_curve_a_model_and_refuses_unlike_sweeps(tmp_path, monkeypatch):
    tmp_path = tmp_path / "é"
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    for iterations, bandwidth in ((20, 0.01), (100, 0.01), (20, 0.05)):
        write_sweep(tmp_path / f"{iterations}-{bandwidth}", iterations, bandwidth)
    done = launch("curve", f"--workdir={tmp_path}", config=None)
    assert done.returncode == 0 and "\\xe9" in done.stdout, done.stderr
    with Image.open(tmp_path / f"{slug('bundled:fashion_mnist_vit')}.png") as picture:
        picture.load()
        assert picture.format == "PNG"
    page = (tmp_path / "report.html").read_text()
    assert f"report: {ascii(str(tmp_path))[1:-1]}" in done.stdout and page.count('src="data:image/png;base64,') == 1
    assert "Accuracy after 20, 100 iterations of the synthesis, mean and standard deviation over 2 seeds" in page
    for iterations, bandwidth in ((20, 0.01), (100, 0.01), (20, 0.05)):
        numbers = (bandwidth, iterations, "88.25 ± 0.35", "86.25 ± 0.35")
        row = "".join(f'<td class="number">{cell}</td>' for cell in numbers)
        assert page.count(f'<td class="">paper</td><td class="">synthesized</td>{row}') == 1
    for other, complaint in (
        ((50, 0.01, {"data": "npz:FILE"}), "differs from the other sweeps in more than synthesis.iterations and"),
        ((20, 0.05, {}), "a second sweep of 20 iterations and bandwidth 0.05"),
        ((50, 0.01, {"seeds": (1,)}), " 0 is there or in the other sweeps, not in both; run what is missing"),
    ):
        write_sweep(tmp_path / "other", *other[:2], **other[2])
        done = launch("curve", f"--workdir={tmp_path}", config=None)
        assert done.returncode == 2 and complaint in done.stderr
        shutil.rmtree(tmp_path / "other")


def test_a_picture_in_a_bucket_is_named_there(tmp_path):
    url = f"file://{tmp_path}/run"
    with local_folder(url) as folder:
        write_sweep(folder / "20", 20)
    done = launch("curve", f"--workdir={url}", config=None)
    name = f"{slug('bundled:fashion_mnist_vit')}.png"
    assert f": {url}/{name}\n" in done.stdout and (tmp_path / "run" / name).exists(), done.stderr
    done = launch("curve", f"--workdir={url}/nothing", config=None)
    assert done.returncode == 2 and f"error: {url}/nothing: found no sweep" in done.stderr


def test_draws_agreement_where_there_was_no_data(tmp_path):
    write_sweep(tmp_path / "20", 20)
    (tmp_path / "20" / "runs.json").write_text(json.dumps([results(seeds=(0, 1), labelled=False)]))
    done = launch("curve", f"--workdir={tmp_path}", config=None)
    assert done.returncode == 0 and list(tmp_path.glob("*.png")), done.stderr
    page = (tmp_path / "report.html").read_text()
    assert "agreement with the float model, %</h2>" in page and "top-1, %</h2>" not in page


def test_refuses_what_is_no_sweep(tmp_path):
    done = launch("curve", f"--workdir={tmp_path}", config=None)
    assert done.returncode == 2 and "found no sweep (*/runs.json)" in done.stderr
    write_sweep(tmp_path / "20", 20)
    (tmp_path / "20" / "runs.json").write_text("[{}]")
    done = launch("curve", f"--workdir={tmp_path}", config=None)
    assert done.returncode == 2 and "20/runs.json: found no sweep's" in done.stderr and "Traceback" not in done.stderr
    write_sweep(tmp_path / "30", 30)
    for damage in (
        lambda runs: runs.clear(),
        lambda runs: runs[0]["runs"].clear(),
        lambda runs: runs[0].pop("float"),
        lambda runs: runs[0]["runs"][0].pop("bits"),
        lambda runs: runs[0]["runs"][0].update(top1="x"),
        lambda runs: runs[0]["runs"][0].update(agreement=float("nan")),
    ):
        runs = [results(seeds=(0, 1))]
        damage(runs)
        (tmp_path / "20" / "runs.json").write_text(json.dumps(runs))
        with pytest.raises(InputError, match="20/runs.json: found no sweep's"):
            read_sweeps(tmp_path)
    (tmp_path / "20" / "config.json").write_text('{"synthesis": 20}')
    done = launch("curve", f"--workdir={tmp_path}", config=None)
    assert done.returncode == 2 and "20/runs.json: found no sweep's" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("settings", [(0, 0.01), (-20, 0.01), (20.0, 0.01), (20, float("inf")), (20, float("nan"))])
def test_settings_that_no_synthesis_has(tmp_path, settings):
    """Their axis is logarithmic, and no picture has a place for them."""
    write_sweep(tmp_path / "20", *settings)
    with pytest.raises(InputError, match="20/runs.json: found no sweep's"):
        read_sweeps(tmp_path)


def test_what_is_no_folder_is_named_with_the_reason(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"/file: cannot be read \(Not a directory\); correct the path"):
        read_sweeps(tmp_path / "file")


def test_curves_are_by_model_bandwidth_and_iterations(tmp_path):
    for iterations, bandwidth in ((20, 0.01), (100, 0.01), (20, 0.05)):
        write_sweep(tmp_path / f"{iterations}-{bandwidth}", iterations, bandwidth)
    ((model, curves),) = read_sweeps(tmp_path).items()
    assert model == "bundled:fashion_mnist_vit"
    assert {bandwidth: set(found) for bandwidth, found in curves.items()} == {0.01: {20, 100}, 0.05: {20}}
    assert curves[0.05][20] == results(seeds=(0, 1))
