"""The live comparison's steps without the release: its rows, what is run again, what goes over, how it is run."""

import json
import pathlib

import numpy as np
import pytest

from psaq_jax import calibrate, quantize
from psaq_jax.comparison import live, release
from psaq_jax.comparison.pixels import Pixels
from psaq_jax.comparison.published import CompareConfig
from psaq_jax.config import QuantizationConfig
from psaq_jax.errors import InputError
from tests.export.small_models import SWIN, random_model
from tests.random_models import VIT, random_pixels

pytestmark = pytest.mark.usefixtures("quickly_compiled")


def opened(folder, script="", python=None):
    """The release as `sh` would have it: called with the adapter, the command and the job's file."""
    if script:
        python = folder / "interpreter"
        python.write_text(f"#!/bin/sh\n{script}\n")
        python.chmod(0o755)
    return release.Release(folder, str(python), folder)


def test_parity_is_of_both_quantizers_on_the_releases_ranges(tmp_path):
    """Of a release that is ours, but for ranges that are half as wide again: every code is equal."""
    model = random_model()
    ranges = calibrate(model, random_pixels(count=8))
    ends = np.array(list(ranges.values()), np.float32)
    theirs = dict(zip(ranges, np.float32(1.5) * ends, strict=True))
    images = random_pixels(count=6)
    logits = np.asarray(quantize(model, theirs, 8, 8)(images))
    assert (logits != np.asarray(quantize(model, ranges, 8, 8)(images))).any()
    np.savez(tmp_path / "w8a8-a_set.npz", logits=logits, ranges=np.float32(1.5) * ends)
    pixels, config = Pixels(images, None), CompareConfig(model="m", batch_size=6)
    float_logits = pixels.logits(model, 6)
    compared = live._Compared(config, model, opened(tmp_path), pixels, float_logits, lambda title: None)
    row = compared.row("a set", "w8a8", ranges, {"paper": {}})
    step = (1.5 * ends[-1, 1] - 1.5 * ends[-1, 0]) / 255
    assert row["parity"]["images"] == 6 and row["parity"]["largest_difference"] < 0.01 * step
    assert (row["parity"]["equal_codes"], row["parity"]["largest_steps"], row["parity"]["same_top1"]) == (100, 0, 100)
    expected = (0.5 * np.abs(ends).max(1) / (1.5 * np.ptp(ends, axis=1))).max()
    np.testing.assert_allclose(row["range_difference"], expected, rtol=1e-5)
    agreement = 100 * np.mean(logits.argmax(-1) == float_logits.argmax(-1))
    assert (row["calibration"], row["bits"], row["release"]["agreement"]) == ("a set", "w8a8", agreement)


@pytest.mark.parametrize("first, total", [(3, 3), (5, 5), (9, 6), (None, 6)])
def test_logits_are_of_as_many_images_as_were_asked_for(first, total):
    """Of bytes as of what they are normalised to; the last batch is filled up."""
    model, told = random_model(), []
    images = np.random.default_rng(0).integers(0, 256, (6, *model.image_size, 3), np.uint8)
    found = Pixels(images, None).logits(model, 4, lambda *progress: told.append(progress), first)
    # A padded batch is summed in another order than one that is not.
    np.testing.assert_allclose(found, model(model.preprocessing.normalize(images[:total])), rtol=1e-5, atol=1e-5)
    assert told == [(done, total) for done in range(4, total, 4)] + [(total, total)]


QUANTIZES = """
echo run >> runs.txt
touch w8a8-noise.npz w4a8-noise.npz
echo '{"seconds": 1}' > quantize.json"""


def test_an_answer_that_was_removed_is_asked_for_again(tmp_path):
    """Which is what the line that finds it damaged says to do."""
    config = CompareConfig(model="m", quantization=QuantizationConfig(("w8a8", "w4a8")))
    theirs = opened(tmp_path, QUANTIZES)
    for times, damaged in ((1, None), (2, "w4a8-noise.npz"), (3, "quantize.json")):
        if damaged:
            (tmp_path / damaged).unlink()
        for _ in range(2):
            found = live._their_quantization(config, theirs, {"noise": np.zeros((2, 1))}, lambda title: None)
            assert found == {"seconds": 1} and (tmp_path / "runs.txt").read_text() == times * "run\n"
    runs = json.loads((tmp_path / "job.json").read_text())["runs"]
    assert [(run["name"], run["calibration"], run["bits"]) for run in runs] == [
        ("w8a8-noise", "noise.npy", [8, 8]), ("w4a8-noise", "noise.npy", [4, 8]),
    ]  # fmt: skip


def test_their_seconds_are_of_single_iterations(tmp_path):
    np.savez(tmp_path / "generated.npz", images=np.ones((2, 3)))
    (tmp_path / "generate.json").write_text('{"seconds": [3.0, 1.0, 2.0, 6.0], "peak_memory_bytes": 7}')
    found, images = live._their_synthesis(CompareConfig(model="m"), opened(tmp_path), 4, lambda title: None)
    assert found == {
        "peak_memory_bytes": 7, "iterations": 4, "seconds": 12, "seconds_per_iteration": 3,
        "seconds_per_iteration_min": 1,
    }  # fmt: skip
    np.testing.assert_array_equal(images, np.ones((2, 3)))


def test_an_answer_of_before_is_none(tmp_path):
    (tmp_path / "probe.json").write_text('{"torch": "2"}')
    (tmp_path / "release.log").write_text("what an earlier run said\n")
    with pytest.raises(InputError, match="cannot run the release of .*: exit code 3, no message; its log: .*release.l"):
        opened(tmp_path, "exit 3").run("probe")


def test_a_release_that_hangs_is_not_waited_for(tmp_path):
    with pytest.raises(InputError, match="no answer within 0 s"):
        opened(tmp_path, "exec sleep 10").run("probe", timeout=0.2)


def test_variables_of_our_python_are_not_those_of_theirs(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/ours")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    opened(tmp_path, "env > env.txt; echo '{}' > probe.json").run("probe")
    found = dict(line.split("=", 1) for line in (tmp_path / "env.txt").read_text().splitlines() if "=" in line)
    assert "PYTHONPATH" not in found and found["CUDA_VISIBLE_DEVICES"] == "3"


def test_an_interpreter_is_found_from_where_it_was_given(tmp_path, monkeypatch):
    """The job works in another folder."""
    opened(tmp_path, 'echo \'{"torch": "2"}\' > probe.json')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for python in ("./interpreter", "~/interpreter"):
        theirs, found = release.open_release(tmp_path, python, pathlib.Path("job"))
        assert found == {"torch": "2"} and theirs.folder == tmp_path / "job"
        assert json.loads((tmp_path / "job" / "job.json").read_text()) == {"clone": str(tmp_path), "device": "auto"}


@pytest.mark.parametrize("module, message", [
    (VIT.clone(registers=2), "has registers, which"), (VIT.clone(swiglu=True), "has SwiGLU, which"),
    (VIT.clone(head="class_and_mean_patch"), "has head 'class_and_mean_patch', which"),
    (VIT.clone(activation="relu"), "its activation is 'relu', the release has 'gelu' alone"),
    (SWIN.clone(window=(4, 2)), r"has window \(4, 2\), which"),
    (SWIN.clone(image_size=(18, 24), patch_size=(2, 3)), r"has patch size \(2, 3\), which"),
    (SWIN.clone(hidden=(16, 33)), r"has hidden widths \(16, 33\), which"),
    (SWIN.clone(widths=(8, 12), hidden=(16, 24)), r"has widths \(8, 12\), which"),
])  # fmt: skip
def test_what_the_release_lacks_is_named(module, message, tmp_path):
    with pytest.raises(InputError, match=message):
        release.write_model(opened(tmp_path), random_model(module))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("module", [VIT, SWIN], ids=["vit", "swin"])
def test_shapes_go_over_as_both_libraries_truncate_them(module, tmp_path):
    module = module.clone(layer_norm_eps=1e-3, qkv_bias=False)
    release.write_model(opened(tmp_path), random_model(module))
    job = json.loads((tmp_path / "job.json").read_text())
    width, hidden = (24, 40) if job["family"] == "vit" else (8, 16)
    assert int(width * job["shape"]["mlp_ratio"]) == hidden and job["shape"]["embed_dim"] == width
    assert job["eps"] == 1e-3 and job["embedding_eps"] == (1e-3 if job["family"] == "vit" else 1e-5)
    assert job["classes"] == 5 and job["image_size"] == list(module.image_size)
    with np.load(tmp_path / job["weights"][0]) as archive:
        biases = {name: archive[name] for name in archive if name.endswith("attn.qkv.bias")}
        assert {name.replace("bias", "weight") for name in biases} == {n for n in archive if n.endswith("qkv.weight")}
        assert biases and not any(bias.any() for bias in biases.values())
