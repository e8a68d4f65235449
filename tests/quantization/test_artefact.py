"""Saved and loaded again: the same logits bit for bit, small files, whole or not at all."""

import dataclasses
import errno
import json
import os
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
from flax import traverse_util

from psaq_jax import InputError, Model, calibrate, load_model, quantize
from psaq_jax.models.loading import abstract_params
from psaq_jax.models.preprocessing import Preprocessing
from psaq_jax.models.saving import save_huggingface_vit
from psaq_jax.models.swin import SwinTransformer
from psaq_jax.models.vit import VisionTransformer
from psaq_jax.quantization.artefact import is_artefact, load_quantized, save_quantized
from psaq_jax.quantization.recipes import DefaultRecipe
from psaq_jax.quantization.representation import LogQuantizer

VIT = VisionTransformer((16, 20), (4, 5), width=24, depth=1, heads=3, hidden=40, classes=5)
SWIN = SwinTransformer((18, 16), (2, 2), (8, 16), (2, 1), (2, 4), (16, 32), (4, 4), 5, convention="timm")
MODULES = {
    "vit": VIT,
    "distilled": VIT.clone(distillation_token=True, head="distilled"),
    "dinov2": VIT.clone(head="class_and_mean_patch", layer_scale=True, swiglu=True, registers=2),
    "bfloat16": VIT.clone(dtype=jnp.bfloat16),
    "swin": SWIN,
}


def random_model(module=VIT, source="", labels=("a", "b", "c", "d|e", "<f>\n\ud800")) -> Model:
    generator = np.random.default_rng(0)
    flat = {
        path: jnp.asarray(generator.normal(0, 0.2, leaf.shape).astype(np.float32) + path.endswith("scale"))
        for path, leaf in abstract_params(module).items()
    }
    preprocessing = Preprocessing(module.image_size, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "cover", (40, 40))
    return Model(traverse_util.unflatten_dict(flat, sep="/"), module, labels, preprocessing, source)


def random_pixels(module=VIT, count=3):
    return np.random.default_rng(1).normal(size=(count, *module.image_size, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def calibrated():
    model = random_model()
    return model, calibrate(model, random_pixels())


def assert_equal(loaded, saved):
    """Every field, every bit."""
    for field in dataclasses.fields(saved):
        if field.name not in ("params", "sites"):
            assert getattr(loaded, field.name) == getattr(saved, field.name), field.name
    assert list(loaded.sites) == list(saved.sites)
    assert loaded.image_size == saved.image_size
    before, after = jax.tree.flatten(saved), jax.tree.flatten(loaded)
    assert before[1] == after[1]
    for x, y in zip(before[0], after[0], strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()
    pixels = random_pixels(saved.module)
    assert np.asarray(saved(pixels)).tobytes() == np.asarray(loaded(pixels)).tobytes()


def stored(directory) -> dict[str, tuple[str, list[int]]]:
    with safetensors.safe_open(directory / "model.safetensors", framework="numpy") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}
        return {name: (part.get_dtype(), part.get_shape()) for name, part in slices.items()}


@pytest.mark.parametrize("activation_bits", range(4, 9))
@pytest.mark.parametrize("weight_bits", range(2, 9))
def test_every_pair_of_bits_loads_bit_for_bit(calibrated, tmp_path, weight_bits, activation_bits):
    q = quantize(*calibrated, weight_bits, activation_bits)
    assert save_quantized(q, tmp_path / "q") == tmp_path / "q"
    assert_equal(load_quantized(tmp_path / "q"), q)


@pytest.mark.parametrize("weight_bits", range(2, 9))
def test_activations_in_floating_point(calibrated, tmp_path, weight_bits):
    q = dataclasses.replace(quantize(*calibrated, weight_bits, 8), sites={}, activation_bits=None)
    assert_equal(load_quantized(save_quantized(q, tmp_path / "q")), q)


@pytest.mark.parametrize("name", MODULES)
def test_every_family(tmp_path, name):
    model = random_model(MODULES[name])
    q = quantize(model, calibrate(model, random_pixels(model.module)), 4, 8)
    assert_equal(load_quantized(save_quantized(q, tmp_path / "q")), q)


@pytest.mark.parametrize("name", ["vit", "swin"])
def test_recipe_default(tmp_path, name):
    """Heads of 8 bits beside layers of 4, logarithmic grids, options."""
    model, bits = random_model(MODULES[name]), jnp.float32(4)
    ranges = calibrate(model, random_pixels(model.module), "default")
    q = quantize(model, ranges, 4, 4, "default", options=DefaultRecipe(damping=0.02))
    logarithmic = LogQuantizer(jnp.float32(0.7), jnp.float32(2), bits)
    softmax = {site: logarithmic for site in q.sites if site.endswith("probabilities")}
    q = dataclasses.replace(q, sites=q.sites | softmax)
    assert softmax
    assert_equal(load_quantized(save_quantized(q, tmp_path / "q")), q)


def test_no_kernel_is_stored_in_floating_point(calibrated, tmp_path):
    save_quantized(quantize(*calibrated, 8, 8), tmp_path / "q")
    tensors = stored(tmp_path / "q")
    kernels = [name for name in tensors if name.endswith("/codes")]
    assert len(kernels) == 6 and all(tensors[name][0] == "I8" for name in kernels)
    floats = [np.prod(shape) for kind, shape in tensors.values() if kind == "F32"]
    assert max(floats) < min(np.prod(tensors[name][1]) for name in kernels if "head" not in name)


def test_deit_tiny_at_four_bits_is_under_a_fifth_of_its_floats(tmp_path):
    module = VisionTransformer((224, 224), (16, 16), 192, 12, 3, 768, 1000)
    model = random_model(module, labels=tuple(map(str, range(1000))))
    q = quantize(model, {name: (-1.0, 1.0) for name in model.sites if _in_paper(name)}, 4, 8)
    save_quantized(q, tmp_path / "q")
    size = sum(path.stat().st_size for path in (tmp_path / "q").iterdir())
    assert size < 4 * sum(x.size for x in jax.tree.leaves(model.params)) / 5


def _in_paper(name):
    return name.rpartition("/")[2] not in ("query", "key", "value", "attention_probabilities")


def test_a_fresh_process_needs_the_directory_alone(calibrated, tmp_path):
    q = quantize(*calibrated, 4, 8)
    save_quantized(q, tmp_path / "q")
    shutil.move(tmp_path / "q", tmp_path / "moved")
    np.save(tmp_path / "pixels.npy", random_pixels())
    code = (
        "import numpy as np; from psaq_jax.quantization.artefact import load_quantized;"
        "np.save('logits.npy', load_quantized('moved')(np.load('pixels.npy')))"
    )
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    environment = os.environ | {"PYTHONPATH": root}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, timeout=120)
    np.testing.assert_array_equal(np.load(tmp_path / "logits.npy"), q(random_pixels()))


def test_the_source_is_described_and_no_longer_needed(tmp_path):
    module = VIT.clone(image_size=(16, 16), patch_size=(4, 4))
    model, labels = random_model(module), ("zero", "one", "two", "three", "four")
    source = tmp_path / "source"
    save_huggingface_vit(source, module, model.params, labels, (0.5,) * 3, (0.5,) * 3)
    model = load_model(str(source))
    q = quantize(model, calibrate(model, random_pixels(module)), 4, 8)
    save_quantized(q, tmp_path / "q")
    config = json.loads((tmp_path / "q" / "config.json").read_text())
    own = json.loads((source / "config.json").read_text())
    assert {key: config[key] for key in own} == own
    record = config["quantization_config"]
    assert re.fullmatch("[0-9a-f]{64}", record["source_sha256"]["model.safetensors"])
    assert record["source_sha256"]["model.safetensors"] in (tmp_path / "q" / "README.md").read_text()
    first = next(iter(q.sites))
    expected = {"name": first, "kind": "UniformQuantizer", "bits": 8.0}
    expected |= {"scale": float(q.sites[first].scale), "zero_point": float(q.sites[first].zero_point)}
    assert record["sites"][0] == expected
    shutil.rmtree(source)
    assert_equal(load_quantized(tmp_path / "q"), q)
    assert_equal(load_quantized(save_quantized(load_quantized(tmp_path / "q"), tmp_path / "again")), q)


def test_an_earlier_artefact_is_replaced_through_a_symlink_too(calibrated, tmp_path):
    save_quantized(quantize(*calibrated, 8, 8), tmp_path / "q")
    (tmp_path / "link").symlink_to("q")
    q = quantize(*calibrated, 4, 4)
    save_quantized(q, tmp_path / "link")
    assert_equal(load_quantized(tmp_path / "q"), q)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "q"]


def test_an_empty_folder_is_used(calibrated, tmp_path):
    (tmp_path / "q").mkdir()
    assert is_artefact(save_quantized(quantize(*calibrated), tmp_path / "q"))


@pytest.mark.parametrize("name", ["notes.txt", "config.json", "model.safetensors"])
def test_a_folder_with_other_files_is_left_alone(calibrated, tmp_path, name):
    (tmp_path / "q").mkdir()
    (tmp_path / "q" / name).write_text("{}")
    assert not is_artefact(tmp_path / "q")
    with pytest.raises(InputError, match=re.escape(name)):
        save_quantized(quantize(*calibrated), tmp_path / "q")
    assert [path.name for path in (tmp_path / "q").iterdir()] == [name]


def test_an_artefact_with_a_users_file_is_left_alone(calibrated, tmp_path):
    q = quantize(*calibrated)
    (save_quantized(q, tmp_path / "q") / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="mine.txt"):
        save_quantized(q, tmp_path / "q")
    assert (tmp_path / "q" / "mine.txt").read_text() == "keep"


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_file_in_the_way(calibrated, tmp_path, place):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="file") as caught:
        save_quantized(quantize(*calibrated), tmp_path / place)
    assert "\n" not in str(caught.value) and (tmp_path / "file").read_text() == "x"


def test_a_full_disk_leaves_the_earlier_artefact_and_no_litter(calibrated, tmp_path, monkeypatch):
    earlier = quantize(*calibrated, 8, 8)
    save_quantized(earlier, tmp_path / "q")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(InputError, match="No space left") as caught:
        patch.setattr(os, "fsync", full)
        save_quantized(quantize(*calibrated, 4, 4), tmp_path / "q")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["q"]
    assert_equal(load_quantized(tmp_path / "q"), earlier)


def test_a_model_that_could_not_be_loaded_is_not_saved(calibrated, tmp_path):
    q = quantize(*calibrated)
    broken = dataclasses.replace(q, params=q.params | {"class_token": q.params["class_token"] * np.nan})
    with pytest.raises(InputError, match="q/model.safetensors: tensor 'params/class_token' holds NaN"):
        save_quantized(broken, tmp_path / "q")
    with pytest.raises(InputError, match="site input: object cannot be saved"):
        save_quantized(dataclasses.replace(q, sites={"input": object()}), tmp_path / "q")
    assert not list(tmp_path.iterdir())


def test_the_card_escapes_what_came_from_outside(calibrated, tmp_path):
    model, ranges = calibrated
    model = model.replace(source="x/<script>alert(1)</script>\n# [a](http://b) | ![c](d) `e`")
    save_quantized(quantize(model, ranges), tmp_path / "q", {"top-1 | <b>": "91.2\n## x"})
    card = (tmp_path / "q" / "README.md").read_text()
    assert "<script>" not in card and "<b>" not in card
    assert "\n# \\[a" not in card and "\n## x" not in card
    assert "\\[a\\]\\(http\\://b\\) \\| \\!\\[c\\]" in card
    assert "| top\\-1 \\| &lt;b&gt; | 91\\.2 \\#\\# x |" in card
