"""`load_model`: where checkpoints are, their formats, and image sizes."""

import json
import pathlib

import huggingface_hub
import jax
import numpy as np
import pytest
from flax import traverse_util
from huggingface_hub import constants

import psaq_jax
from psaq_jax.models.sources import DOWNLOADED, find_checkpoint
from tests.golden_files import GOLDEN, golden, nhwc
from tests.models.checkpoints import BFLOAT16, copied, edit_config, refused, shard, tensors, write_tensors

HEAD = "classifier.weight"


@pytest.fixture
def vit(tmp_path):
    return copied("hf_vit", tmp_path)


def same_params(a, b):
    a, b = (traverse_util.flatten_dict(model.params) for model in (a, b))
    return a.keys() == b.keys() and all(np.array_equal(a[path], b[path]) for path in a)


# Sources and formats


def test_a_local_directory_as_path_or_text(vit):
    assert same_params(psaq_jax.load_model(vit), psaq_jax.load_model(str(vit)))
    assert psaq_jax.load_model(vit).source == str(vit)


def test_shards_are_read_as_one_file(vit):
    whole = psaq_jax.load_model(vit)
    shard(vit)
    assert same_params(whole, psaq_jax.load_model(vit))


@pytest.mark.parametrize("dtype", [np.dtype("float16"), BFLOAT16, np.dtype("float64")], ids=str)
def test_other_floating_point_types_become_float32(vit, dtype):
    values = {k: v.astype(dtype) for k, v in tensors(vit).items()}
    write_tensors(vit, values)
    model = psaq_jax.load_model(vit)
    for leaf in jax.tree.leaves(model.params):
        assert leaf.dtype == np.float32
    np.testing.assert_array_equal(model.params["head"]["kernel"], values[HEAD].astype(np.float32).T)


def test_integer_weights_are_refused(vit):
    write_tensors(vit, tensors(vit) | {HEAD: np.ones(tensors(vit)[HEAD].shape, np.int8)})
    assert f"{HEAD} is I8; expected float16, bfloat16, float32 or float64" in refused(vit)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pth", "weights.safetensors"])
def test_other_weights_get_a_line_that_says_how_to_convert(vit, name):
    (vit / "model.safetensors").rename(vit / name)
    message = refused(vit)
    for part in (name, "never read", "safe_serialization=True", "safetensors.torch.save_file"):
        assert part in message
    assert ("rename weights.safetensors if it holds the whole model" in message) == name.endswith(".safetensors")


def test_a_pointer_of_git_lfs_is_told_from_a_damaged_file(vit):
    (vit / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n")
    assert "model.safetensors: is git-lfs's pointer to a file" in refused(vit)


def test_a_preprocessor_in_processor_config(vit):
    expected = psaq_jax.load_model(vit).preprocessing
    fields = (vit / "preprocessor_config.json").read_text()
    (vit / "preprocessor_config.json").unlink()
    (vit / "processor_config.json").write_text(f'{{"image_processor": {fields}, "processor_class": "AutoProcessor"}}')
    assert psaq_jax.load_model(vit).preprocessing == expected
    (vit / "processor_config.json").write_text('{"image_processor": []}')
    assert f"{vit / 'processor_config.json'} has image_processor = [], expected an object" in refused(vit)


def make_hub_cache(cache, checkpoint, commit, revision):
    """The layout of the hub's cache: blobs, refs and snapshots of links."""
    root = cache / "models--someone--tiny-vit"
    for folder in ("blobs", "refs", f"snapshots/{commit}"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "refs" / revision).write_text(commit)
    for path in checkpoint.iterdir():
        blob = root / "blobs" / f"{commit[:8]}{path.name}"
        blob.write_bytes(path.read_bytes())
        (root / "snapshots" / commit / path.name).symlink_to(pathlib.Path("../../blobs") / blob.name)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An offline hub whose cache holds two revisions of someone/tiny-vit."""
    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)
    make_hub_cache(cache, GOLDEN / "checkpoints/hf_vit", "a" * 40, "main")
    make_hub_cache(cache, GOLDEN / "checkpoints/hf_deit", "b" * 40, "other")


def test_register_tokens_of_none_are_nothing(tmp_path):
    """As transformers saves a model of `num_register_tokens = 0`."""
    directory = copied("hf_dinov2_registers", tmp_path)
    edit_config(directory, num_register_tokens=0)
    name = "dinov2_with_registers.embeddings.register_tokens"
    found = tensors(directory)
    write_tensors(directory, found | {name: found[name][:, :0]})
    model = psaq_jax.load_model(directory)
    assert model.module.registers == 0 and "register_tokens" not in model.params
    smaller = tuple(side - patch for side, patch in zip(model.image_size, model.module.patch_size, strict=True))
    resized = psaq_jax.load_model(directory, smaller).params["position_embedding"]
    np.testing.assert_array_equal(
        resized, psaq_jax.load_model(GOLDEN / "checkpoints/hf_dinov2_registers", smaller).params["position_embedding"]
    )


@pytest.mark.parametrize("other, name", [("gelu_python", "gelu"), ("gelu_accurate", "gelu_pytorch_tanh")])
def test_other_names_of_an_activation(vit, other, name):
    edit_config(vit, hidden_act=other)
    pixels = np.random.default_rng(0).normal(size=(2, *psaq_jax.load_model(vit).image_shape)).astype(np.float32)
    found = psaq_jax.load_model(vit)(pixels)
    edit_config(vit, hidden_act=name)
    np.testing.assert_array_equal(found, psaq_jax.load_model(vit)(pixels))


@pytest.mark.parametrize("field", ["quantization_config", "num_labels", "architecture", "qkv_bias"])
def test_null_is_what_a_config_leaves_out(vit, field):
    before = psaq_jax.load_model(vit)
    edit_config(vit, **{field: None})
    assert same_params(psaq_jax.load_model(vit), before)


def test_a_home_directory(vit, monkeypatch):
    monkeypatch.setenv("HOME", str(vit.parent))
    assert same_params(psaq_jax.load_model("~/hf_vit"), psaq_jax.load_model(vit))
    with pytest.raises(psaq_jax.InputError, match="none': no such directory; give a"):
        psaq_jax.load_model("~/none")


def test_a_hub_id_works_offline_from_the_cache(hub):
    model = psaq_jax.load_model("someone/tiny-vit")
    assert same_params(model, psaq_jax.load_model(GOLDEN / "checkpoints/hf_vit"))
    assert model.source == "someone/tiny-vit"


@pytest.mark.parametrize(
    ("source", "what"), [(GOLDEN / "checkpoints" / "hf_vit", "a directory"), ("bundled:fashion_mnist_vit", "bundled")]
)
def test_what_is_here_has_no_revisions(source, what):
    with pytest.raises(psaq_jax.InputError, match=f"revision is 'main', model .* is {what}"):
        psaq_jax.load_model(source, revision="main")


def test_a_bad_preprocessor_is_named_with_its_file(vit):
    path = vit / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"image_std": [0.5, 0.5, 1e-300]}))
    with pytest.raises(psaq_jax.InputError) as error:
        psaq_jax.load_model(vit)
    assert str(error.value).startswith(f"{path}: image_std: found [0.5, 0.5, 1e-300], expected three numbers of at")


@pytest.mark.parametrize("revision", ["other", "b" * 40])
def test_a_revision_is_a_branch_or_a_commit(hub, revision):
    model = psaq_jax.load_model("someone/tiny-vit", revision=revision)
    assert same_params(model, psaq_jax.load_model(GOLDEN / "checkpoints/hf_deit"))


def test_a_hub_id_that_is_not_cached_is_one_line(hub):
    assert "the Hugging Face hub could not give it" in refused("someone/else")
    assert "the Hugging Face hub could not give it" in refused("someone/tiny-vit", revision="nowhere")


def test_a_hub_id_downloads_config_preprocessor_and_safetensors_alone(monkeypatch, tmp_path):
    asked = {}

    def snapshot_download(name, **arguments):
        asked.update(arguments, name=name)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert find_checkpoint("owner/name", "v1") == tmp_path
    assert asked == {"name": "owner/name", "revision": "v1", "allow_patterns": list(DOWNLOADED)}
    assert all(p.endswith((".json", ".safetensors")) for p in DOWNLOADED)


# Image sizes


@pytest.mark.parametrize("name", ["hf_vit", "hf_deit", "timm_vit", "hf_dinov2"])
def test_image_size_interpolates_the_position_embeddings(name):
    directory = GOLDEN / "checkpoints" / name
    own, larger = psaq_jax.load_model(directory), psaq_jax.load_model(directory, image_size=(64, 48))
    assert larger.image_size == larger.preprocessing.image_size == (64, 48)
    patches = (64 // own.module.patch_size[0]) * (48 // own.module.patch_size[1])
    special = own.params["position_embedding"].shape[0] - own.module.grid[0] * own.module.grid[1]
    assert larger.params["position_embedding"].shape[0] == special + patches
    same = psaq_jax.load_model(directory, image_size=own.image_size)
    assert same_params(own, same)


@pytest.mark.parametrize("name", ["timm_vit", "timm_swin"])
def test_timm_models_in_transformers_wrapper(name, tmp_path):
    """Its weights may be called timm_model.NAME."""
    directory = copied(name, tmp_path)
    plain = psaq_jax.load_model(directory)
    write_tensors(directory, {f"timm_model.{tensor}": value for tensor, value in tensors(directory).items()})
    assert same_params(psaq_jax.load_model(directory), plain)


def test_pixels_that_are_not_normalised_are_warned_of(vit, tmp_path, caplog):
    psaq_jax.load_model(vit)
    assert "takes pixels" not in caplog.text
    path = vit / "preprocessor_config.json"
    raw = json.loads(path.read_text()) | {"do_rescale": False, "do_normalize": False}
    path.write_text(json.dumps(raw))
    psaq_jax.load_model(vit)
    assert "preprocessor_config.json: takes pixels from 0 to 255" in caplog.text


def test_models_that_do_not_choose_one_class_are_warned_of(vit, caplog):
    edit_config(vit, problem_type="single_label_classification")
    psaq_jax.load_model(vit)
    assert "problem_type" not in caplog.text
    edit_config(vit, problem_type="multi_label_classification")
    psaq_jax.load_model(vit)
    assert "classes and problem_type multi_label_classification; top-1" in caplog.text


@pytest.mark.parametrize("size", [0, -1, 2.5, "224", True, (32,), (32, 32, 3), 10**9, (32, None), ()])
def test_impossible_image_sizes(vit, size):
    assert "image_size is" in refused(vit, image_size=size)


def test_an_image_smaller_than_a_patch(vit):
    assert "smaller than one patch" in refused(vit, image_size=4)


@pytest.mark.parametrize("name", ["hf_swin", "timm_swin"])
def test_swin_at_another_size_matches_its_own_library(name):
    """Made by tests/golden/more/make.py: maps that the windows do not divide."""
    archive = golden(f"more/another_size/{name}/reference.npz")
    pixels = nhwc(archive["pixel_values_nchw"])
    model = psaq_jax.load_model(GOLDEN / "checkpoints" / name, image_size=pixels.shape[1:3])
    assert model.preprocessing.image_size == pixels.shape[1:3]
    np.testing.assert_allclose(model(pixels), archive["logits"], atol=5e-6)


@pytest.mark.parametrize("name", ["hf_swin", "timm_swin"])
def test_swin_with_smaller_windows_is_refused(name):
    message = refused(GOLDEN / "checkpoints" / name, image_size=12)
    assert "image_size=(12, 12) makes windows of (3, 3) in stage 1, its weights are for (4, 4)" in message


@pytest.mark.parametrize("name, expected", [("hf_swin", (48, 40)), ("hf_vit", (32, 32))])
def test_a_preprocessor_of_another_size(name, expected, tmp_path, caplog):
    """transformers' Swin runs at it, and its ViT, which would not, is warned of."""
    checkpoint = copied(name, tmp_path)
    assert psaq_jax.load_model(checkpoint).preprocessing.image_size == (32, 32) and not caplog.records
    path = checkpoint / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"size": {"height": 48, "width": 40}}))
    model = psaq_jax.load_model(checkpoint)
    assert model.preprocessing.image_size == model.module.image_size == expected
    warned = "its preprocessing makes images of 48x40 pixels, its config.json is of 32x32" in caplog.text
    assert warned == (name == "hf_vit")
