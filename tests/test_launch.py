"""The jobs as users start them: what they write, and one line with exit code 2 for bad input."""

import collections
import gzip
import json
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from psaq_jax import InputError, files, resumption
from psaq_jax.data import load_dataset
from psaq_jax.workdir import results_folder
from tests import jobs, quick_recipe
from tests.jobs import TINY

SMALL = ("--config.synthesis.num_images=4", "--config.synthesis.group_size=4", "--config.synthesis.iterations=4")


def launch(script, *arguments, config="configs/demo.py"):
    given = [f"--config={config}"] if config else []  # before the fields that it has
    return jobs.launch(script, *given, *arguments)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "images.npz"
    np.savez(path, images=rng.integers(0, 256, (10, 32, 32, 3), dtype=np.uint8), labels=np.arange(10))
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return jobs.shallow(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, model, data):
    workdir = tmp_path_factory.mktemp("run") / "workdir"
    given = (f"--config.model={model}", f"--config.data=npz:{data}", "--config.quantization.recipe=paper")
    done = launch("quantize", *given, f"--workdir={workdir}", *SMALL)
    assert done.returncode == 0, done.stderr
    return workdir, done


def test_the_main_job_runs_at_another_image_size(tmp_path, model, data):
    """At 48 px and with ingredients taken away; the artefact then runs at that size, and at no other."""
    small = (*SMALL, "--config.quantization.bits=w6a8", "--quiet", f"--workdir={tmp_path / 'run'}")
    size = ("--config.image_size=48", f"--config.data=npz:{data}")
    recipe = f"--config.quantization.recipe={quick_recipe.NAME}"
    done = launch("quantize", f"--config.model={model}", *size, recipe, *small, config="configs/default.py")
    assert done.returncode == 0, done.stderr
    assert np.load(tmp_path / "run" / "images" / "synthesized.npy").shape == (4, 48, 48, 3)
    artefact = tmp_path / "run" / "quantized" / f"w6a8-{quick_recipe.NAME}-synthesized"
    done = launch("evaluate", f"--config.model={artefact}", *size, f"--workdir={tmp_path / 'evaluated'}", "--quiet")
    assert done.returncode == 0, done.stderr
    runs = json.loads((tmp_path / "run" / "results.json").read_text())["runs"]
    measured = json.loads((tmp_path / "evaluated" / "results.json").read_text())["quantized"]
    assert [(run["recipe"], run["top1"]) for run in runs] == [(quick_recipe.NAME, measured["top1"])]
    elsewhere = ("--config.image_size=32", f"--workdir={tmp_path / 'other'}")
    other = launch("evaluate", f"--config.model={artefact}", *elsewhere)
    assert other.returncode == 2 and "image_size is 32" in other.stderr and "48x48 alone" in other.stderr


def test_a_killed_main_job_goes_on_behind_the_models_it_has_saved(finished, model, data, tmp_path):
    """As if killed after the third of six, two of which were damaged since: the sound one stays, the others come again,
    and all figures are the same.
    """
    workdir, done = finished
    shutil.copytree(workdir, tmp_path / "run")
    first, *others = [path.stem for path in (tmp_path / "run" / "runs").iterdir()]
    truncated, emptied, *missing = (tmp_path / "run" / "quantized" / name for name in others)
    (truncated / "model.safetensors").write_bytes((truncated / "model.safetensors").read_bytes()[:-1])
    (emptied / "config.json").write_text("{}")
    for folder in missing:
        (tmp_path / "run" / "runs" / f"{folder.name}.json").unlink()
        shutil.rmtree(folder)
    (tmp_path / "run" / "results.json").unlink()
    kept = (tmp_path / "run" / "quantized" / first / "model.safetensors").stat().st_mtime_ns
    given = (f"--config.model={model}", f"--config.data=npz:{data}", "--config.quantization.recipe=paper")
    again = launch("quantize", *given, f"--workdir={tmp_path / 'run'}", *SMALL)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "run" / "quantized" / first / "model.safetensors").stat().st_mtime_ns == kept
    before, after = (json.loads((path / "results.json").read_text()) for path in (workdir, tmp_path / "run"))
    assert after["runs"] == before["runs"] and len(after["runs"]) == 1 + len(others) == 6
    for name in others:
        weights = pathlib.Path("quantized", name, "model.safetensors")
        assert (tmp_path / "run" / weights).read_bytes() == (workdir / weights).read_bytes()


def test_runs_whose_figures_are_damaged_are_made_again(tmp_path):
    """In a process of its own, as each script defines the same flags."""
    (tmp_path / "runs").mkdir()
    whole = resumption.write_figures(tmp_path / "runs" / "run0.json", {"top1": 1.0}).read_bytes()
    for i, content in enumerate((b"", b"\xff", whole[:-3], b"[1]", b"{}", whole.replace(b"1.0", b"9.0")), 1):
        (tmp_path / "runs" / f"run{i}.json").write_bytes(content)
    script = "import pathlib, sys; from launch import quantize; "
    script += "quantize.pipeline.saved_model = lambda folder: True; "
    script += "print(quantize.finished_runs(pathlib.Path(sys.argv[1])))"
    done = subprocess.run([sys.executable, "-c", script, tmp_path], timeout=600, **jobs.settings())
    assert done.stdout == "{'run0': {'top1': 1.0}}\n", done.stderr


def test_the_main_job_writes_what_it_says(finished):
    workdir, done = finished
    results = json.loads((workdir / "results.json").read_text())
    assert results["float"]["examples"] == 10 and results["synthesis"]["iterations"] == 4
    assert results["synthesis"]["num_images"] == 4 and results["synthesis"]["held_out"] == 0
    assert results["evaluated_on"] == {"images": 10, "kind": "data"}
    assert results["calibrated_on"]["real"] == {"images": 4, "evaluated": True}
    assert results["calibrated_on"]["noise"] == {"images": 4, "evaluated": False}
    assert "real images are of those measured on" in done.stdout
    real = card_rows(workdir / "quantized" / "w8a8-paper-real")
    assert real["calibrated on"] == "4 real images, of those measured on"
    assert [(r["calibration"], r["bits"]) for r in results["runs"]] == [
        (calibration, bits) for calibration in ("synthesized", "noise", "real") for bits in ("w8a8", "w4a8")
    ]
    images = np.load(workdir / "images" / "synthesized.npy")
    assert images.shape == (4, 32, 32, 3) and images.dtype == np.float32
    names = {"synthesized.png", "noise.png", "real.png", "loss.png", "similarity.png"}
    assert names <= {path.name for path in (workdir / "images").iterdir()}
    page = (workdir / "report.html").read_text()
    assert "products run in integers" in page
    assert all(phase in page for phase in (*results["seconds"], "peak memory"))
    assert results["peak_memory_bytes"] > 10**7
    log = (workdir / "log.txt").read_text()
    assert str(workdir) in log.splitlines()[0] and log.endswith("INFO finished\n") and "agreement %" in log
    assert "\033" not in done.stdout + log  # no terminal: no colours
    assert "agreement" in done.stdout and str(workdir / "report.html") in done.stdout
    run = next(r for r in results["runs"] if (r["calibration"], r["bits"]) == ("noise", "w8a8"))
    rows = card_rows(workdir / "quantized" / "w8a8-paper-noise")
    assert rows["calibrated on"] == "4 noise images" and rows["measured on"].startswith("10 images of npz:")
    assert rows["top-1 (%)"] == f"{run['top1']:.2f} (float model: {results['float']['top1']:.2f})"
    assert rows["same top-1 as the float model (%)"] == f"{run['agreement']:.2f}"


def card_rows(artefact):
    """{what: figure} of a model card, as Markdown shows it."""
    shown = re.sub(r"\\([\\`*_{}\[\]()#+.!|~:@$^=-])", r"\1", (artefact / "README.md").read_text())
    return dict(re.findall(r"^\| (.+) \| (.+) \|$", shown, re.MULTILINE))


def test_evaluate_and_predict_take_the_artefact(finished, data, tmp_path):
    workdir, _ = finished
    artefact = workdir / "quantized" / "w4a8-paper-synthesized"
    run = next(r for r in json.loads((workdir / "results.json").read_text())["runs"] if r["bits"] == "w4a8")
    arguments = (f"--config.model={artefact}", f"--config.data=npz:{data}", f"--workdir={tmp_path}")
    assert launch("evaluate", *arguments).returncode == 0
    assert json.loads((tmp_path / "results.json").read_text())["quantized"]["top1"] == run["top1"]
    page = (tmp_path / "report.html").read_text()
    assert f"Top-1 {run['top1']:.2f} % of 10 images." in page and "4-bit weights" in page
    done = launch("evaluate", *arguments, "--execution=integer")
    integer = json.loads((tmp_path / "results.json").read_text())
    assert done.returncode == 0 and integer["execution"] == "integer"
    assert re.search(r"  [1-9]\d* of \d+ products run in integers, \d\d\.\d %", done.stdout)
    assert abs(integer["quantized"]["top1"] - run["top1"]) <= 10  # one image of ten
    assert '<td class="">block_0/mlp/dense1</td><td class="">integer</td>' in (tmp_path / "report.html").read_text()
    done = launch("predict", *arguments, "--execution=integer")
    assert done.returncode == 0 and "products run in integers" in done.stdout
    assert launch("predict", *arguments).returncode == 0
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    logits = np.load(tmp_path / "logits.npy")
    assert logits.shape == (10, 10) and [len(line["top5"]) for line in lines] == [5] * 10
    labels = [line["top5"][0]["label"] for line in lines]
    assert labels == [str(i) for i in logits.argmax(-1)]
    page = (tmp_path / "report.html").read_text()
    assert re.findall(r"<figcaption>(.+?)</figcaption>", page) == labels
    (most, count), *_ = collections.Counter(labels).most_common()
    assert f'<td class="">{most}</td><td class="number">{count}</td><td class="number">{count}0.0</td>' in page


def test_predictions_are_a_line_an_image(tmp_path):
    """For readers too that end lines where Unicode does; the names of folders are no classes then. How many images are
    broken is said, for they have none.
    """
    name = "a\u2028b\x85c.png"
    files.write(tmp_path / "images" / "2026-11" / name, lambda path: Image.new("RGB", (32, 32)).save(path))
    data = f"folder:{tmp_path / 'images'}"
    files.write_bytes(tmp_path / "images" / "2026-11" / "broken.png", b"no image")
    more = ("--config.data_errors=skip", f"--workdir={tmp_path}")
    done = launch("predict", f"--config.model={TINY}", f"--config.data={data}", *more)
    assert done.returncode == 0, done.stderr
    assert "broken images, without a row in either: 1\n" in done.stdout
    page = (tmp_path / "report.html").read_text()
    assert page.count("<figure>") == 1 and "Predictions for 1 images of " in page and "; 1 broken image was" in page
    (line,) = (tmp_path / "predictions.jsonl").read_text().splitlines()
    assert json.loads(line)["image"].endswith(name)


def test_the_likeliest_are_in_the_order_of_the_logits(data, tmp_path):
    """Of a model that is sure all other probabilities are 0, their logits differ."""
    sure = tmp_path / "sure"
    shutil.copytree(TINY, sure)
    tensors = safetensors.numpy.load_file(sure / "model.safetensors")
    tensors |= {name: 1e4 * x for name, x in tensors.items() if name.startswith("head.")}
    safetensors.numpy.save_file(tensors, sure / "model.safetensors")
    done = launch("predict", f"--config.model={sure}", f"--config.data=npz:{data}", f"--workdir={tmp_path}")
    assert done.returncode == 0, done.stderr
    logits = np.load(tmp_path / "logits.npy")
    rows = [json.loads(line)["top5"] for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    found = [[int(one["label"]) for one in top5] for top5 in rows]
    assert np.ptp(logits, axis=1).min() > 1000
    np.testing.assert_array_equal(found, np.argsort(-logits, axis=1, kind="stable")[:, :5])
    assert all(top5[0]["probability"] == 1 and top5[-1]["probability"] == 0 for top5 in rows)


def test_no_extra_is_needed(tmp_path, model, data):
    """As after `pip install .`: all figures and models, and why there is no page."""
    for name in ("jinja2", "matplotlib", "tensorboardX"):
        files.write_text(tmp_path / "without" / f"{name}.py", "raise ImportError('not installed')")
    settings = jobs.settings()
    settings["env"] |= {"PYTHONPATH": f"{tmp_path / 'without'}:{jobs.ROOT}"}
    workdir, few = tmp_path / "workdir", ("--config.quantization.bits=w8a8", "--config.calibration=noise")
    arguments = (f"--config.model={model}", f"--config.data=npz:{data}", f"--workdir={workdir}", *SMALL, *few)
    command = [sys.executable, "-m", "launch.quantize", "--config=configs/demo.py", "--quiet", *arguments]
    done = subprocess.run(command, timeout=600, **settings)
    assert done.returncode == 0, done.stderr
    install = f'install it in its repository with: {sys.executable} -m pip install ".[{{}}]"'
    missing = f"not written, {{}}: cannot be imported (not installed); {install}\n"
    for title, package, extra in (
        ("report", "jinja2", "report"), ("metrics", "tensorboardX", "log"), ("loss curves", "matplotlib", "report"),
    ):  # fmt: skip
        assert f"  {title}: {missing.format(package, extra)}" in done.stdout
    assert json.loads((workdir / "results.json").read_text())["runs"][0]["top1"] >= 0
    assert (workdir / "images" / "noise.png").exists() and not (workdir / "report.html").exists()
    assert not (workdir / "images" / "loss.png").exists() and not (workdir / "metrics").exists()


def test_no_data_is_needed(tmp_path, model):
    given = (f"--config.model={model}", "--config.data=", "--config.quantization.recipe=paper")
    done = launch("quantize", *given, f"--workdir={tmp_path}", *SMALL)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["float"] is None and {r["calibration"] for r in results["runs"]} == {"synthesized", "noise"}
    assert all(r["top1"] is None and 0 <= r["agreement"] <= 100 for r in results["runs"])
    assert np.load(tmp_path / "images" / "synthesized.npy").shape[0] == 4
    assert results["evaluated_on"] == {"images": 4, "kind": "synthesized"}
    assert results["synthesis"]["num_images"] == 4 and results["synthesis"]["held_out"] == 4
    rows = card_rows(tmp_path / "quantized" / "w8a8-paper-synthesized")
    assert rows["measured on"] == "4 synthesized images that no calibration saw" and "top-1 (%)" not in rows
    assert "4 synthesized images that no calibration saw" in done.stdout and "one is 25.0 points" in done.stdout


def truncated(folder):
    shutil.copytree(TINY, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    return (f"--config.model={folder}",)


def empty_data(folder):
    np.savez(folder.with_suffix(".npz"), images=np.zeros((0, 32, 32, 3), np.uint8), labels=np.zeros(0, int))
    return (f"--config.model={TINY}", f"--config.data=npz:{folder.with_suffix('.npz')}")


def wrong_labels(folder):
    np.savez(folder.with_suffix(".npz"), images=np.zeros((2, 32, 32, 3), np.uint8), labels=np.array([3, 10]))
    return (f"--config.model={TINY}", f"--config.data=npz:{folder.with_suffix('.npz')}", *SMALL)


def file_as_workdir(folder):
    folder.write_text("")
    return (f"--config.model={TINY}", "--config.data=", f"--workdir={folder}", *SMALL)


BAD = {
    "no such model": (lambda folder: (f"--config.model={folder}",), "no such directory"),
    "truncated weights": (truncated, "model.safetensors: is not a whole safetensors file"),
    "unknown field": (lambda folder: ("--config.synthesis.iteration=3",), "did you mean 'iterations'"),
    "one of two": (
        lambda folder: ("--config.synthesis.group_size=8", "--config.quantization.group_size=8"),
        "config.synthesis.group_size or config.quantization.group_size is not a known field",
    ),
    "wrong type": (lambda folder: ("--config.seed=x",), "seed"),
    "empty data": (empty_data, "[0, 32, 32, 3]"),
    "labels outside": (wrong_labels, "label 10"),
    "workdir is a file": (file_as_workdir, "cannot be written"),
    "unknown flag": (lambda folder: ("--nonsense=1",), "nonsense"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_exit_code_2(name, tmp_path):
    make, message = BAD[name]
    arguments = make(tmp_path / "bad")
    if not any(a.startswith("--workdir") for a in arguments):
        arguments += (f"--workdir={tmp_path / 'workdir'}",)
    done = launch("quantize", *arguments)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and len(lines) == 1 and message in lines[0], done.stderr
    assert "Traceback" not in done.stderr


def test_a_device_that_is_not_there_is_one_line(tmp_path):
    settings = jobs.settings()
    settings["env"]["JAX_PLATFORMS"] = "nonsense"
    command = (sys.executable, "-m", "launch.quantize", "--config=configs/demo.py", f"--workdir={tmp_path / 'run'}")
    done = subprocess.run(command, timeout=600, **settings)
    assert done.returncode == 2 and "error: JAX_PLATFORMS is 'nonsense': Unable" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("given, message", [
    (("--config=configs/none.py",), "error: --config=configs/none.py: there is no such file, expected"),
    (("--config", "configs/none.py"), "error: --config=configs/none.py: there is no such file, expected"),
    ((), "error: --config is missing, expected"),
])  # fmt: skip
def test_a_missing_config_file_is_one_line(given, message, tmp_path):
    done = launch("quantize", *given, f"--workdir={tmp_path}", config=None)
    assert done.returncode == 2 and done.stderr.startswith(message) and done.stderr.count("\n") == 1, done.stderr


def test_whatever_a_config_file_raises_is_one_line(tmp_path):
    (tmp_path / "own.py").write_text("def get_config():\n    assert unknown\n")
    done = launch("quantize", f"--config={tmp_path / 'own.py'}", f"--workdir={tmp_path / 'run'}", config=None)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr, done.stderr
    assert "--config cannot be loaded (NameError: name 'unknown' is not defined)" in done.stderr


@pytest.mark.parametrize("script, arguments, message", [
    ("train_demo", ("--learning_rate=nan", "--output=x"), "--learning_rate is nan, expected a number above 0"),
    ("train_demo", ("--output=",), "--output is empty, expected a folder"),
    ("train_demo", ("--seed=9223372036854775808",), "--seed is 9223372036854775808, expected a whole number from 0 to"),
    ("train_demo", ("--epochs=2",), "flag --epochs=2: 2 is not integer >= 3"),
    ("build_demo_data", ("--data_dir=none",), "none/train-images-idx3-ubyte.gz: cannot be read"),
    ("build_demo_data", ("--output=",), "--output is empty, expected a folder"),
    ("build_demo_data", ("--output=gs://bucket/data",), "--output=gs://bucket/data: is a bucket, expected a folder of"),
])  # fmt: skip
def test_scripts_that_rebuild_the_assets_refuse_in_one_line(script, arguments, message, tmp_path):
    done = launch(script, f"--output={tmp_path / 'output'}", *arguments, config=None)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and message in done.stderr, done.stderr
    assert not (tmp_path / "output").exists()


def fashion_mnist(folder):
    """As many images as --batch_size=4 takes, in the four files of the data set."""
    for split in ("train", "t10k"):
        images = b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (4, 28, 28)) + bytes(4 * 28 * 28)
        files.write_bytes(folder / f"{split}-images-idx3-ubyte.gz", gzip.compress(images))
        labels = b"\0\0\x08\x01" + (4).to_bytes(4, "big") + bytes(range(4))
        files.write_bytes(folder / f"{split}-labels-idx1-ubyte.gz", gzip.compress(labels))
    return (f"--data_dir={folder}", "--batch_size=4")


@pytest.mark.parametrize("script", ["train_demo", "build_demo_data"])
def test_a_data_set_of_which_labels_are_missing_is_refused_before_anything_is_written(script, tmp_path):
    data, _ = fashion_mnist(tmp_path / "data")
    few = b"\0\0\x08\x01" + (3).to_bytes(4, "big") + bytes(3)
    files.write_bytes(tmp_path / "data" / "t10k-labels-idx1-ubyte.gz", gzip.compress(few))
    done = launch(script, data, f"--output={tmp_path / 'output'}", config=None)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "t10k has labels of shape [3] up to 0 for 4 images, expected one below 10 for each" in done.stderr
    assert not (tmp_path / "output").exists()


def test_a_data_set_that_is_written_anew_cannot_be_opened_before_it_is_whole(tmp_path):
    output = tmp_path / "output"
    given = "build_demo_data", fashion_mnist(tmp_path / "data")[0], f"--output={output}"
    files.write_text(output / f"{files.UNFINISHED}x.array_record-00000-of-00001", "of a killed run")
    assert launch(*given, config=None).returncode == 0
    assert load_dataset(f"tfds:{output}:test") and not list(output.glob(f"{files.UNFINISHED}*"))
    full = subprocess.run(
        ["bash", "-c", 'ulimit -f 1; exec "$@"', "bash", sys.executable, "-m", f"launch.{given[0]}", *given[1:]],
        **jobs.settings(),
    )
    assert full.returncode == 2 and "File too large" in full.stderr, full.stderr
    assert load_dataset(f"tfds:{output}:test"), "what was there is whole until the new shards are"
    shard = output / "fashion_mnist-test.array_record-00000-of-00001"
    shard.unlink()
    shard.mkdir()
    done = launch(*given, config=None)
    assert done.returncode == 2 and "cannot be written (Is a directory)" in done.stderr, done.stderr
    with pytest.raises(InputError, match="output"):
        load_dataset(f"tfds:{output}:train")
    done = launch(*given[:2], f"--output={output / 'fashion_mnist-train.array_record-00000-of-00001'}", config=None)
    assert done.returncode == 2 and "cannot be written (Not a directory)" in done.stderr, done.stderr


def test_two_trainings_do_not_share_a_folder(tmp_path):
    output = tmp_path / "output"
    with results_folder(output):
        done = launch("train_demo", *fashion_mnist(tmp_path / "data"), f"--output={output}", config=None)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert f"--output={output}: another run is at work there" in done.stderr


def test_a_training_shows_its_progress_and_goes_on(tmp_path):
    given = (*fashion_mnist(tmp_path / "data"), "--epochs=3", f"--output={tmp_path / 'output'}")
    done = launch("train_demo", *given, config=None)
    assert done.returncode == 0 and all(f"epoch {n}: 100%" in done.stderr for n in (1, 2, 3)), done.stderr
    written = {path.name: path.read_bytes() for path in (tmp_path / "output").iterdir()}
    assert "model.safetensors" in written and written["training_log.jsonl"].count(b"\n") == 3
    assert b"top-1 on 4 test images after epoch 3 of 3." in written["report.html"]
    assert f"report: {tmp_path / 'output' / 'report.html'}\n" in done.stdout
    again = launch("train_demo", *given, config=None)
    assert again.returncode == 0 and "epoch" not in again.stderr, again.stderr
    assert {path.name: path.read_bytes() for path in (tmp_path / "output").iterdir()} == written
    (tmp_path / "output" / "training_state.npz").unlink()  # as is asked for where it is damaged
    anew = launch("train_demo", *given, config=None)
    assert anew.returncode == 0 and "epoch 3: 100%" in anew.stderr, anew.stderr
    assert (tmp_path / "output" / "model.safetensors").read_bytes() == written["model.safetensors"]


def test_a_damaged_state_of_a_training_is_refused(tmp_path):
    resumption.write_tree(tmp_path / "output" / "training_state.npz", {"params": np.zeros(3)})
    given = (*fashion_mnist(tmp_path / "data"), f"--output={tmp_path / 'output'}")
    done = launch("train_demo", *given, config=None)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "training_state.npz: is damaged, or no state of this training; remove it to start anew" in done.stderr
