"""Artefacts whose JSON was damaged or altered: refused in one line. (Weights: test_tampered_weights.py.)"""

import dataclasses
import json
import os

import numpy as np
import pytest

from psaq_jax import InputError, checksums
from psaq_jax.distillation.config import DistillationConfig
from psaq_jax.quantization.artefact import load_quantized
from psaq_jax.quantization.record import check_hash
from tests.quantization.tampering import NAMES, SITE, mend_hash, put, refused, retensor, rewrite


def test_the_untouched_copy_loads(altered):
    mend_hash(altered)
    retensor(altered, lambda tensors: None)
    assert load_quantized(altered)(np.zeros((1, 8, 8, 3))).shape == (1, 3)


DISTILLED = dataclasses.asdict(DistillationConfig())
CONFIGS = {
    "another method": ("quant_method", "gptq", "quant_method", "what wrote it reads it"),
    "another version": ("format_version", 2, "format_version", "the psaq_jax that saved it"),
    "version as text": ("format_version", "1", "format_version"),
    "unknown family": ("family", "os.system", "family"),
    "another family": ("family", "SwinTransformer", "module"),
    "unknown field": ("evil", 1, "evil"),
    "unknown module field": ("module.parent", None, "module", "parent"),
    "unknown recipe": ("recipe", "../paper", "recipe"),
    "options of text": ("options", "gptq", "options"),
    "unknown options": ("options", {"gptq": True}, "options"),
    "distillations of nothing": ("distillations", None, "distillations"),
    "distillations of text": ("distillations", ["long"], "distillations"),
    "distillations of no settings": ("distillations", [{}], "distillations", "missing"),
    "unknown setting": ("distillations", [DISTILLED | {"evil": 1}], "distillations", "evil"),
    "setting of text": ("distillations", [DISTILLED | {"cycles": "8"}], "distillations", "cycles"),
    "impossible setting": ("distillations", [DISTILLED | {"mixing": 2.0}], "mixing is 2.0"),
    "a distillation that was not": ("distillations", [DISTILLED], "quantization_config.sha256"),
    "weights of 1 bit": ("weight_bits", 1, "weight_bits"),
    "activations of 1 bit": ("activation_bits", 1, "activation_bits"),
    "activations float, sites left": ("activation_bits", None, "sites"),
    "a kernel of 9 bits": ("kernels.head/kernel", 9, "head/kernel"),
    "a kernel of True bits": ("kernels.head/kernel", True, "head/kernel"),
    "an unknown kernel": ("kernels.evil/kernel", 4, "evil/kernel"),
    "unknown kind": ("sites.0.kind", "eval", "sites[0].kind"),
    "kind of a list": ("sites.0.kind", [1], "sites[0].kind"),
    "site twice": ("sites.1.name", "input", "sites[1].name"),
    "site without a field": ("sites.0", {"name": "input", "kind": "UniformQuantizer"}, "sites[0]", "missing"),
    "site with another field": ("sites.0.path", "/etc/passwd", "sites[0]", "path"),
    "site's scale": ("sites.3.scale", 1.0, "sites", "scale"),
    "site's scale is NaN": ("sites.3.scale", float("nan"), "sites", "scale"),
    "sites of text": ("sites", "input", "sites"),
    "no sites": ("sites", [], "sites"),
    "labels too few": ("labels", ["a", "b"], "labels are 2, expected 3"),
    "labels too many": ("labels", ["a"] * 4, "labels"),
    "labels of numbers": ("labels", [1, 2, 3], "labels is 1, expected text"),
    "labels of text": ("labels", "abc", "labels is 'abc', expected a list"),
    "another size": ("model_bytes", 7, "model_bytes"),
    "depth of a billion": ("module.depth", 10**9, "blocks"),
    "depth below zero": ("module.depth", -1, "module.depth is -1, expected a whole number of at least 0"),
    "depth of a float": ("module.depth", 1.0, "module.depth"),
    "width beyond 64 bits": ("module.width", 10**30, "module.width"),
    "width beyond the file": ("module.width", 2**40, "width"),
    "width zero": ("module.width", 0, "module"),
    "no heads": ("module.heads", 0, "module"),
    "heads that do not divide": ("module.heads", 3, "module has width 8 and 3 heads; the heads must divide"),
    "a width that heads do not divide": ("module.width", 7, "module has width 7 and 2 heads; the heads must divide"),
    "a patch larger than the image": ("module.patch_size", [16, 4], "a patch must not be larger than the image"),
    "registers": ("module.registers", 2**20, "registers"),
    "huge image": ("module.image_size", [2**30, 2**30], "image_size"),
    "wide image": ("module.image_size", [2**14, 2**14], "patches"),
    "three sides": ("module.image_size", [8, 8, 8], "image_size is [8, 8, 8], expected 2 entries"),
    "a side below zero": ("module.image_size", [8, -1], "module.image_size is -1, expected a whole number of at"),
    "patches of nothing": ("module.patch_size", [0, 0], "module"),
    "unknown activation": ("module.activation", "__import__('os')", "activation", "expected one of gelu, "),
    "unknown head": ("module.head", "other", "head"),
    "unknown dtype": ("module.dtype", "object", "dtype is 'object', expected one of float32, "),
    "epsilon of infinity": ("module.layer_norm_eps", float("inf"), "layer_norm_eps is inf, expected a finite number"),
    "epsilon below zero": ("module.layer_norm_eps", -1, "layer_norm_eps is -1.0, expected a positive number up to 1"),
    "epsilon zero": ("module.layer_norm_eps", 0, "layer_norm_eps is 0.0, expected a positive number up to 1"),
    "epsilon too large": ("module.layer_norm_eps", 1e29, "layer_norm_eps is 1e+29, expected a positive number up to 1"),
    "module of nothing": ("module", None, "module"),
    "another model that fits": ("module.activation", "relu", "quantization_config.sha256"),
    "other labels": ("labels", ["b", "a", "c"], "quantization_config.sha256"),
    "another hash": ("sha256", "0" * 64, "quantization_config.sha256"),
    "a version of numbers": ("versions.jax", [1], "quantization_config.versions.jax is [1], expected text"),
    "a source's hash of an object": ("source_sha256", {"w": {"a": 1}}, "source_sha256.w is {'a': 1}, expected text"),
}


WEIGHTS_CASES = ("another size", "no sites", "an unknown kernel")  # where the tensors tell


@pytest.mark.parametrize("case", CONFIGS)
def test_altered_config(altered, case):
    key, value, *fields = CONFIGS[case]
    rewrite(altered / "config.json", put(key, value))
    file = "model.safetensors" if case in WEIGHTS_CASES else "config.json"
    refused(altered, file, *fields)


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b"null", b"\xff\xfe", b'{"a":' * 99_999, b"[" * 99_999, b'{"a": 1}'],
)
@pytest.mark.parametrize("file", NAMES[:2])
def test_json_garbage(altered, file, content):
    (altered / file).write_bytes(content)
    refused(altered, file)


@pytest.mark.parametrize("file", NAMES)
def test_files_that_are_no_files(altered, file):
    (altered / file).unlink()
    refused(altered, file)
    os.mkfifo(altered / file)  # opening it would wait for ever
    refused(altered, file, "regular file")


def test_symlinks_are_fine(artefact, tmp_path):
    for name in NAMES:
        (tmp_path / name).symlink_to(artefact / name)
    assert load_quantized(tmp_path).labels == ("a", "b", "c")


def test_json_too_large_is_not_read(altered):
    with (altered / "config.json").open("ab") as file:
        file.truncate(2**40)  # sparse
    refused(altered, "config.json", "at most")


PREPROCESSORS = {
    "size": ("image_size", [9, 9], "image_size"),
    "huge resize": ("resize_size", [2**20, 2**20], "resize_size"),
    "resized to lower": ("resize_size", [7, 8], "resize_size is (7, 8), expected no less than image_size (8, 8)"),
    "resized to less": ("resize_size", [8, 7], "resize_size is (8, 7), expected no less than image_size (8, 8)"),
    "std zero": ("std", [0, 1, 1], "std is (0.0, 1.0, 1.0), expected at least 1e-06;"),
    "a second std below the bound": ("std", [1, 1e-7, 1], "std is (1.0, 1e-07, 1.0), expected at least 1e-06;"),
    "one std": ("std", [0.5], "std is [0.5], expected 3 entries"),
    "rescale zero": ("rescale_factor", 0, "rescale_factor is 0.0, expected a positive number"),
    "std zero in float32": ("std", [1e-300, 1, 1], "std"),
    "mean NaN": ("mean", [float("nan"), 1, 1], "mean is nan, expected a finite number"),
    "filter": ("interpolation", "x\ny" * 500, "interpolation"),
    "resize": ("resize", "stretch", "resize"),
    "fraction": ("crop_fraction", 0.0001, "crop_fraction is 0.0001, expected a fraction from 0.01 to 1"),
    "fraction above one": ("crop_fraction", 1.01, "crop_fraction is 1.01, expected a fraction from 0.01 to 1"),
    "unknown": ("other", 1, "other"),
}


@pytest.mark.parametrize("case", PREPROCESSORS)
def test_altered_preprocessor(altered, case):
    key, value, field = PREPROCESSORS[case]
    rewrite(altered / "preprocessor_config.json", lambda config: config | {key: value})
    refused(altered, "preprocessor_config.json", field)


def test_a_side_of_nothing(altered):
    """Which "exact" refuses as less than the image; "cover" would divide by it."""
    change = {"resize": "cover", "resize_size": [0, 8]}
    rewrite(altered / "preprocessor_config.json", lambda config: config | change)
    refused(altered, "preprocessor_config.json", "resize_size are ((8, 8), (0, 8)), expected (8, 8) and 1 to")


def test_another_preprocessor_that_fits(altered):
    rewrite(altered / "preprocessor_config.json", lambda config: config | {"mean": [0.5, 0.5, 0.4]})
    refused(altered, "config.json", "quantization_config.sha256", "preprocessor_config.json")


@pytest.mark.parametrize("change", [{"id2label": {"0": "evil"}}, {"model_type": "zzz"}])
def test_what_the_source_said_has_a_hash_too(altered, change):
    rewrite(altered / "config.json", lambda config: config | change)
    refused(altered, "config.json", "quantization_config.sha256 is not that of the rest of config.json and of")


def test_earlier_hashes_are_of_the_record_and_the_preprocessing(altered):
    preprocessing = json.loads((altered / "preprocessor_config.json").read_text())

    def earlier(config):
        record = config["quantization_config"]
        del record["sha256"]
        record["sha256"] = checksums.of_json([record, preprocessing])
        config["id2label"] = {"0": "of a source"}

    rewrite(altered / "config.json", earlier)
    assert load_quantized(altered).labels == ("a", "b", "c")
    rewrite(altered / "config.json", put("labels", ["b", "a", "c"]))
    refused(altered, "config.json", "quantization_config.sha256")


def test_what_cannot_be_hashed_again_is_refused():
    """JSON's decoder takes one level more than its encoder, called deeper, does."""
    nested = {}
    for _ in range(10_000):
        nested = {"a": nested}
    with pytest.raises(InputError, match="is nested too deeply"):
        check_hash({"quantization_config": {"sha256": ""}, "a": nested}, {}, InputError)


def test_a_logarithmic_grid_where_the_recipe_has_none(altered):
    """In both files; an exported graph of it could not be made."""
    name, fields = SITE.removeprefix("sites/"), {"scale": 0.5, "steps": 2.0, "bits": 8.0, "shift": 0.0}

    def in_record(config):
        sites = config["quantization_config"]["sites"]
        sites[[site["name"] for site in sites].index(name)] = {"name": name, "kind": "LogQuantizer"} | fields

    def in_tensors(tensors):
        del tensors[f"{SITE}/zero_point"]
        tensors.update({f"{SITE}/{field}": np.asarray(value, np.float32) for field, value in fields.items()})

    rewrite(altered / "config.json", in_record)
    retensor(altered, in_tensors)
    refused(altered, "config.json", f"{name} has a LogQuantizer, expected a UniformQuantizer there")


@pytest.mark.parametrize("shape", [(3,), (8,), (2, 1, 1, 1), (1,) * 5, (2**16, 1, 1)])
def test_a_quantizer_has_one_scale(altered, shape):
    """Both copies of the scale are altered alike. One by channel would fit the tensor."""
    scale = np.full(shape, 0.5, np.float32)
    retensor(altered, lambda tensors: tensors.update({f"{SITE}/scale": scale}))

    def change(config):
        sites = config["quantization_config"]["sites"]
        next(site for site in sites if site["name"] in SITE)["scale"] = scale.tolist()

    rewrite(altered / "config.json", change)
    refused(altered, "model.safetensors", "block_0/norm1_output")


def test_sites_in_another_order(altered):
    rewrite(altered / "config.json", lambda config: config["quantization_config"]["sites"].reverse())
    refused(altered, "config.json", "sites")


@pytest.mark.parametrize("place", [0, 5, -1])
def test_a_site_that_is_missing_from_both_files(altered, place):
    removed = []

    def without(config):
        removed.append(config["quantization_config"]["sites"].pop(place)["name"])

    def drop(tensors):
        for name in [name for name in tensors if name.startswith(f"sites/{removed[0]}/")]:
            del tensors[name]

    rewrite(altered / "config.json", without)
    retensor(altered, drop)
    refused(altered, "config.json", "quantization_config.sites has", f"where the model has '{removed[0]}'")


@pytest.mark.parametrize("bits", [4, 7])
def test_a_site_of_other_bits_in_both_files(altered, bits):
    """Its zero point fits them."""
    name = SITE.removeprefix("sites/")

    def change(config):
        (site,) = (site for site in config["quantization_config"]["sites"] if site["name"] == name)
        site |= {"bits": float(bits), "zero_point": 0.0}

    rewrite(altered / "config.json", change)
    values = {f"{SITE}/bits": np.float32(bits), f"{SITE}/zero_point": np.float32(0)}
    retensor(altered, lambda tensors: tensors.update({name: np.asarray(value) for name, value in values.items()}))
    refused(altered, "model.safetensors", f"'{SITE}/bits' holds {bits}", "expected 8 by activation_bits")
