"""Saved and loaded again: the same logits bit for bit, small files. (Folders in the way: test_artefact_folders.py.)"""

import dataclasses
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

from psaq_jax import InputError, calibrate, load_model, quantize
from psaq_jax.models.architecture import check_geometry
from psaq_jax.models.fields import LONGEST_LABELS, MOST_CLASSES
from psaq_jax.models.saving import save_huggingface
from psaq_jax.models.swin import SwinTransformer
from psaq_jax.models.vit import VisionTransformer
from psaq_jax.quantization import recipes
from psaq_jax.quantization.artefact import load_quantized, save_quantized
from psaq_jax.quantization.integer import IntegerModel, integer_model
from psaq_jax.quantization.recipes import DefaultRecipe
from psaq_jax.quantization.representation import LogQuantizer
from psaq_jax.quantization.transform import kernel_sizes
from tests.export.small_models import with_activation_scales
from tests.quantization.artefacts import MODULES, assert_equal, random_model, stored
from tests.random_models import VIT, random_pixels

pytestmark = pytest.mark.usefixtures("quickly_compiled")


@pytest.mark.parametrize("activation_bits", [*range(2, 9), None])
@pytest.mark.parametrize("weight_bits", range(2, 9))
def test_every_pair_of_bits_loads_bit_for_bit(calibrated, tmp_path, weight_bits, activation_bits):
    q = quantize(*calibrated, weight_bits, activation_bits)
    assert save_quantized(q, tmp_path / "q") == tmp_path / "q"
    assert_equal(load_quantized(tmp_path / "q"), q)
    card = (tmp_path / "q" / "README.md").read_text()
    assert (f"Activations: {activation_bits} bits." in card) == ("no integer product" in card)
    assert ("Activations: floating point." in card) == ("Not quantized: activations, biases." in card)


def test_the_fingerprint_is_of_all_that_is_quantized(calibrated, tmp_path):
    q = quantize(*calibrated, 4, 8)
    assert load_quantized(save_quantized(q, tmp_path / "q")).fingerprint() == q.fingerprint()
    others = [quantize(*calibrated, *bits).fingerprint() for bits in ((5, 8), (4, 7), (4, None))]
    assert len({q.fingerprint(), *others}) == 4


def test_mixed_precision(calibrated, tmp_path):
    """Every kernel has its own bits in the file; the average is not stored but computed."""
    layers = kernel_sizes(calibrated[0].params)
    bits = dict(zip(layers, (2, 3, 8, 5, 7, 4), strict=True))
    q = quantize(*calibrated, bits, 8)
    assert_equal(load_quantized(save_quantized(q, tmp_path / "q")), q)
    assert q.weight_bits == sum(layers[layer] * b for layer, b in bits.items()) / sum(layers.values())
    tensors = stored(tmp_path / "q")
    sizes = {layer: -(-layers[layer] * b // 8) for layer, b in bits.items() if b < 8}
    packed = {name: shape for name, (kind, shape) in tensors.items() if kind == "U8"}
    assert packed == {f"params/{layer}/kernel/packed": [size] for layer, size in sizes.items()}
    assert f"Weights: 2 to 8 bits, {q.weight_bits:.2f} on average" in (tmp_path / "q" / "README.md").read_text()


LARGE = {  # more than any published model has of something, and no more than `load_model` takes
    "blocks": VisionTransformer((8, 8), (4, 4), width=4, depth=65, heads=1, hidden=4, classes=2),
    "a window larger than the map": SwinTransformer((16, 18), (2, 2), (8,), (1,), (2,), (16,), (40, 40), 5),
}


@pytest.mark.parametrize("name", LARGE)
def test_what_can_be_quantized_can_be_saved(tmp_path, name):
    check_geometry(LARGE[name], "it")
    model = random_model(LARGE[name], labels=())
    save_quantized(quantize(model, {}, 4, None), tmp_path / "q")


def test_as_many_and_as_long_labels_as_load_model_takes_can_be_saved(tmp_path):
    """Thrice in config.json: the source's id2label and label2id, and ours."""
    module = VIT.clone(image_size=(8, 8), patch_size=(4, 4), width=3, hidden=3, classes=MOST_CLASSES)
    length = LONGEST_LABELS // MOST_CLASSES - len('"", ')
    labels, half = [str(i).rjust(length, "x") for i in range(MOST_CLASSES)], (0.5,) * 3
    save_huggingface(tmp_path / "source", module, random_model(module).params, labels, half, half)
    model = load_model(str(tmp_path / "source"))
    assert load_quantized(save_quantized(quantize(model, None, 4, None), tmp_path / "q")).labels == tuple(labels)


@pytest.mark.parametrize("recipe", ["paper", "default"])
def test_integer_execution(tmp_path, recipe):
    model = random_model()
    q = quantize(model, calibrate(model, random_pixels(), recipe), 4, 8, recipe)
    loaded = load_quantized(save_quantized(q, tmp_path / "q"), execution="integer")
    assert isinstance(loaded, IntegerModel)
    np.testing.assert_array_equal(loaded(random_pixels()), integer_model(q)(random_pixels()))
    np.testing.assert_array_equal(loaded(random_pixels()), q(random_pixels()))


def test_another_execution_is_refused(calibrated, tmp_path):
    with pytest.raises(InputError, match="execution is 'int8', known are simulated, integer"):
        load_quantized(save_quantized(quantize(*calibrated), tmp_path / "q"), execution="int8")


@pytest.mark.parametrize("name", MODULES)
def test_every_family(tmp_path, name):
    model = random_model(MODULES[name])
    q = quantize(model, calibrate(model, random_pixels(model.module)), 4, 8)
    assert_equal(load_quantized(save_quantized(q, tmp_path / "q")), q)


@pytest.mark.parametrize("name", ["vit", "swin"])
def test_recipe_default(tmp_path, name):
    """Heads of 8 bits beside layers of 4, logarithmic grids, scales of activations, options."""
    model, bits = random_model(MODULES[name]), jnp.float32(4)
    ranges = calibrate(model, random_pixels(model.module), "default")
    q = quantize(model, ranges, 4, 4, "default", options=DefaultRecipe(damping=0.02))
    logarithmic = LogQuantizer(jnp.float32(0.7), jnp.float32(2), bits)
    softmax = {site: logarithmic for site in q.sites if site.endswith("probabilities")}
    q = with_activation_scales(dataclasses.replace(q, sites=q.sites | softmax))
    assert softmax
    assert_equal(load_quantized(save_quantized(q, tmp_path / "q")), q)


@pytest.mark.parametrize("through", [jax.device_put, lambda q: jax.tree.map(lambda x: x, q), jax.jit(lambda q: q)])
def test_sites_keep_their_order_through_jax(calibrated, tmp_path, through):
    q = quantize(*calibrated, 4, 8)
    assert list(through(q).sites) == list(q.sites) != sorted(q.sites)
    assert_equal(load_quantized(save_quantized(through(q), tmp_path / "q")), q)


def test_numpy_s_whole_numbers_are_bits_too(calibrated, tmp_path):
    q = quantize(*calibrated, np.int32(4), np.int64(8))
    assert_equal(load_quantized(save_quantized(q, tmp_path / "q")), q)


def test_changed_weights_are_not_said_to_be_the_source_s(tmp_path):
    model = load_model("bundled:fashion_mnist_vit")
    changed = model.replace(params=jax.tree.map(lambda x: 1.01 * x, model.params))
    for one, source, hashed in ((model, model.source, True), (changed, f"{model.source} (changed)", False)):
        q = quantize(one, None, 8, None)
        config = json.loads((save_quantized(q, tmp_path / "q") / "config.json").read_text())["quantization_config"]
        assert config["source"] == source and bool(config["source_sha256"]) == hashed
        card = (tmp_path / "q" / "README.md").read_text()
        assert ("not recorded: no folder of this name held them" in card) == (not hashed)


def checkpoint(folder):
    """A small one in Hugging Face's layout."""
    module = VIT.clone(image_size=(16, 16), patch_size=(4, 4))
    save_huggingface(folder, module, random_model(module).params, ("a", "b", "c", "d", "e"), (0.5,) * 3, (0.5,) * 3)
    return folder


def test_a_file_that_was_overwritten_since_is_not_said_to_hold_the_weights(tmp_path):
    source = checkpoint(tmp_path / "source")
    q = quantize(load_model(str(source)), None, 4, None)
    weights = source / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")  # as many bytes
    saved = save_quantized(q, tmp_path / "q")
    assert json.loads((saved / "config.json").read_text())["quantization_config"]["source_sha256"] == {}
    assert "not recorded: no folder of this name held them" in (saved / "README.md").read_text()


def test_numbers_that_json_does_not_know_are_null_in_the_artefacts_config(tmp_path):
    """Python reads NaN and infinity in a checkpoint's config.json; nobody else has to in ours."""
    source = checkpoint(tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"nothing": [float("nan")], "more": -float("inf")}))
    saved = save_quantized(quantize(load_model(str(source)), None, 4, None), tmp_path / "q")
    found = json.loads((saved / "config.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert found["nothing"] == [None] and found["more"] is None
    assert load_quantized(saved).classes == 5


def test_ingredients_that_need_images_are_off_without_them(calibrated):
    model = calibrated[0]
    q = quantize(model, calibrate(model, random_pixels(model.module), "default"), 4, 8, "default")
    assert q.options.first_last_8bit and not any((q.options.gptq, q.options.fold_norms, q.options.search_ranges))


def test_artefacts_older_than_an_ingredient(tmp_path):
    """Saved before recipe "default" had it, they were made without; any other option must be there."""
    model = random_model(MODULES["vit"])
    q = quantize(model, calibrate(model, random_pixels(model.module), "default"), 4, 8, "default")
    config = save_quantized(q, tmp_path / "q") / "config.json"
    saved = json.loads(config.read_text())
    del saved["quantization_config"]["sha256"], saved["quantization_config"]["distillations"]
    for option in recipes.ADDED:
        del saved["quantization_config"]["options"][option]
    config.write_text(json.dumps(saved))
    loaded = load_quantized(tmp_path / "q")
    assert loaded.options == dataclasses.replace(q.options, **recipes.ADDED) != q.options
    assert_equal(dataclasses.replace(loaded, options=q.options), q)
    del saved["quantization_config"]["options"]["damping"]
    config.write_text(json.dumps(saved))
    with pytest.raises(InputError, match="options.'damping' is missing"):
        load_quantized(tmp_path / "q")


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
    save_huggingface(source, module, model.params, labels, (0.5,) * 3, (0.5,) * 3)
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


@pytest.mark.parametrize("now", ["other weights", "gone"])
@pytest.mark.parametrize("execution", ["simulated", "integer"])
def test_what_an_artefact_knows_of_its_source_stays_when_it_is_saved_again(tmp_path, now, execution):
    """Whatever lies there by then: the model was not made from it."""
    module = VIT.clone(image_size=(16, 16), patch_size=(4, 4))
    source, half = tmp_path / "source", (0.5,) * 3
    save_huggingface(source, module, random_model(module).params, ("a", "b", "c", "d", "e"), half, half)
    q = quantize(load_model(str(source)), None, 4, None)
    first = save_quantized(q, tmp_path / "first")
    if now == "gone":
        shutil.rmtree(source)
    else:
        weights = source / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    loaded = load_quantized(first, execution)
    for again in (loaded, jax.tree.map(lambda x: x, loaded), dataclasses.replace(loaded, recipe="paper")):
        second = save_quantized(again, tmp_path / "second")
        for name in ("config.json", "preprocessor_config.json", "README.md"):
            assert (second / name).read_bytes() == (first / name).read_bytes(), name


def test_a_model_that_could_not_be_loaded_is_not_saved(calibrated, tmp_path):
    q = quantize(*calibrated)
    broken = dataclasses.replace(q, params=q.params | {"class_token": q.params["class_token"] * np.nan})
    with pytest.raises(InputError, match="q/model.safetensors: tensor 'params/class_token' holds NaN"):
        save_quantized(broken, tmp_path / "q")
    with pytest.raises(InputError, match="site input: object cannot be saved"):
        save_quantized(dataclasses.replace(q, sites={"input": object()}), tmp_path / "q")
    with pytest.raises(InputError, match="config.json would have 16.* bytes, expected at most 16777216; shorten"):
        save_quantized(dataclasses.replace(q, labels=("a" * 2**24, *"bcde")), tmp_path / "q")
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
