"""Artefacts that were damaged or altered, by accident or by one who mends the hash: refused in one line."""

import copy
import hashlib
import json
import os
import random
import resource
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util

from psaq_jax import InputError, Model, quantize
from psaq_jax.models.loading import abstract_params
from psaq_jax.models.preprocessing import Preprocessing
from psaq_jax.models.vit import VisionTransformer
from psaq_jax.quantization import packing
from psaq_jax.quantization.artefact import load_quantized, save_quantized

MODULE = VisionTransformer((8, 8), (4, 4), width=8, depth=1, heads=2, hidden=12, classes=3)
KERNEL, SCALE = "params/head/kernel/packed", "params/head/kernel/code_scale"
SITE = "sites/block_0/norm1_output"
NAMES = ("config.json", "preprocessor_config.json", "model.safetensors")
FUZZED = 320


@pytest.fixture(scope="module")
def artefact(tmp_path_factory):
    flat = {
        path: jnp.asarray(np.random.default_rng(0).normal(0, 0.3, leaf.shape), jnp.float32)
        for path, leaf in abstract_params(MODULE).items()
    }
    half = (0.5,) * 3
    params = traverse_util.unflatten_dict(flat, sep="/")
    model = Model(params, MODULE, ("a", "b", "c"), Preprocessing((8, 8), half, half), "source")
    outside = {"query", "key", "value", "attention_probabilities"}
    ranges = {name: (-1.0, 1.5) for name in model.sites if name.rpartition("/")[2] not in outside}
    return save_quantized(quantize(model, ranges, 4, 8), tmp_path_factory.mktemp("artefact") / "q")


@pytest.fixture
def altered(artefact, tmp_path):
    return shutil.copytree(artefact, tmp_path / "q")


def rewrite(path, change):
    """Alters a JSON file."""
    value = json.loads(path.read_text())
    changed = change(value)
    path.write_text(json.dumps(value if changed is None else changed))


def mend_hash(directory):
    content = (directory / "model.safetensors").read_bytes()

    def change(config):
        config["quantization_config"]["model_bytes"] = len(content)
        config["quantization_config"]["model_sha256"] = hashlib.sha256(content).hexdigest()

    rewrite(directory / "config.json", change)


def retensor(directory, change, metadata=packing.FORMAT):
    """Alters the tensors and mends the hash."""
    path = directory / "model.safetensors"
    tensors = {name: value.copy() for name, value in safetensors.numpy.load_file(path).items()}
    change(tensors)
    path.write_bytes(safetensors.numpy.save(tensors, {"format": metadata}))
    mend_hash(directory)


def refused(directory, file, *fields):
    with pytest.raises(InputError) as caught:
        load_quantized(directory)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 700
    assert message.startswith(f"{directory / file}: "), message
    assert all(field in message for field in fields), message


def put(key, value):
    """Sets `key` ("a.b.0.c") inside quantization_config."""

    def change(config):
        *path, last = key.split(".")
        place = config["quantization_config"]
        for part in path:
            place = place[int(part) if isinstance(place, list) else part]
        place[int(last) if isinstance(place, list) else last] = value

    return change


def test_the_untouched_copy_loads(altered):
    mend_hash(altered)
    retensor(altered, lambda tensors: None)
    assert load_quantized(altered)(np.zeros((1, 8, 8, 3))).shape == (1, 3)


CONFIGS = {
    "another method": ("quant_method", "gptq", "quant_method"),
    "another version": ("format_version", 2, "format_version"),
    "version as text": ("format_version", "1", "format_version"),
    "unknown family": ("family", "os.system", "family"),
    "another family": ("family", "SwinTransformer", "module"),
    "unknown field": ("evil", 1, "evil"),
    "unknown module field": ("module.parent", None, "module", "parent"),
    "unknown recipe": ("recipe", "../paper", "recipe"),
    "options of text": ("options", "gptq", "options"),
    "unknown options": ("options", {"gptq": True}, "options"),
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
    "labels too many": ("labels", ["a"] * 4, "labels"),
    "labels of numbers": ("labels", [1, 2, 3], "labels"),
    "another size": ("model_bytes", 7, "model_bytes"),
    "depth of a billion": ("module.depth", 10**9, "blocks"),
    "depth below zero": ("module.depth", -1, "module.depth"),
    "depth of a float": ("module.depth", 1.0, "module.depth"),
    "width beyond 64 bits": ("module.width", 10**30, "module.width"),
    "width beyond the file": ("module.width", 2**40, "width"),
    "width zero": ("module.width", 0, "module"),
    "no heads": ("module.heads", 0, "module"),
    "heads that do not divide": ("module.heads", 3, "module"),
    "registers": ("module.registers", 2**20, "registers"),
    "huge image": ("module.image_size", [2**30, 2**30], "image_size"),
    "wide image": ("module.image_size", [2**14, 2**14], "patches"),
    "three sides": ("module.image_size", [8, 8, 8], "image_size"),
    "patches of nothing": ("module.patch_size", [0, 0], "module"),
    "unknown activation": ("module.activation", "__import__('os')", "activation"),
    "unknown head": ("module.head", "other", "head"),
    "unknown dtype": ("module.dtype", "object", "dtype"),
    "epsilon of infinity": ("module.layer_norm_eps", float("inf"), "layer_norm_eps"),
    "module of nothing": ("module", None, "module"),
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
    "std zero": ("std", [0, 1, 1], "std"),
    "mean NaN": ("mean", [float("nan"), 1, 1], "mean"),
    "filter": ("interpolation", "x\ny" * 500, "interpolation"),
    "resize": ("resize", "stretch", "resize"),
    "fraction": ("crop_fraction", 1e-20, "crop_fraction"),
    "unknown": ("other", 1, "other"),
}


@pytest.mark.parametrize("case", PREPROCESSORS)
def test_altered_preprocessor(altered, case):
    key, value, field = PREPROCESSORS[case]
    rewrite(altered / "preprocessor_config.json", lambda config: config | {key: value})
    refused(altered, "preprocessor_config.json", field)


@pytest.mark.parametrize("mended", [False, True])
@pytest.mark.parametrize("keep", [0, 4, 8, 100, -1])
def test_truncated_weights(altered, keep, mended):
    path = altered / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    if mended:
        mend_hash(altered)
    refused(altered, "model.safetensors")


def test_a_flipped_bit_breaks_the_hash(altered):
    path = altered / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    refused(altered, "model.safetensors", "SHA-256")


def test_a_header_that_declares_more_than_the_file_holds(altered):
    path = altered / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes((2**62).to_bytes(8, "little") + content[8:])
    mend_hash(altered)
    refused(altered, "model.safetensors", "safetensors")
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header[SCALE]["shape"] = [2**62]
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    mend_hash(altered)
    refused(altered, "model.safetensors", "safetensors")


def value_of(name, value):
    def change(tensors):
        tensors[name] = np.full_like(tensors[name], value)

    return change


def typed(name, dtype):
    return lambda tensors: tensors.update({name: tensors[name].astype(dtype)})


TENSORS = {
    "scale zero": (value_of(SCALE, 0), SCALE, "positive"),
    "scale negative": (value_of(SCALE, -1), SCALE, "positive"),
    "scale NaN": (value_of(SCALE, np.nan), SCALE, "NaN"),
    "scale infinite": (value_of(SCALE, np.inf), SCALE, "NaN or infinity"),
    "parameter NaN": (value_of("params/head/bias", np.nan), "params/head/bias"),
    "site scale zero": (value_of(f"{SITE}/scale", 0), f"{SITE}/scale", "positive"),
    "site scale negative": (value_of(f"{SITE}/scale", -0.1), f"{SITE}/scale", "positive"),
    "site scale NaN": (value_of(f"{SITE}/scale", np.nan), f"{SITE}/scale"),
    "zero point of a half": (value_of(f"{SITE}/zero_point", 1.5), f"{SITE}/zero_point"),
    "zero point too large": (value_of(f"{SITE}/zero_point", 256), f"{SITE}/zero_point"),
    "zero point negative": (value_of(f"{SITE}/zero_point", -1), f"{SITE}/zero_point"),
    "bits of a site": (value_of(f"{SITE}/bits", 1e30), f"{SITE}/bits"),
    "missing": (lambda tensors: tensors.pop(SCALE), SCALE, "missing"),
    "extra": (lambda tensors: tensors.update(extra=np.zeros(1)), "extra", "not expected"),
    "path": (lambda tensors: tensors.update({"../../evil\n": np.zeros(1)}), "../../evil"),
    "float copy": (lambda t: t.update({"params/head/kernel": np.zeros((8, 3), np.float32)}), "not expected"),
    "float64 scale": (typed(SCALE, np.float64), SCALE, "F32"),
    "float codes": (typed(KERNEL, np.float32), KERNEL, "U8"),
    "signed codes": (typed(KERNEL, np.int8), KERNEL, "U8"),
    "long scale": (lambda t: t.update({SCALE: np.ones(4, np.float32)}), SCALE, "[3]"),
    "scalar scale": (lambda t: t.update({SCALE: np.ones((), np.float32)}), SCALE),
    "short codes": (lambda t: t.update({KERNEL: t[KERNEL][:-1]}), KERNEL),
    "codes of another shape": (lambda t: t.update({KERNEL: t[KERNEL][None]}), KERNEL),
}


@pytest.mark.parametrize("case", TENSORS)
def test_altered_tensors_with_a_mended_hash(altered, case):
    change, *fields = TENSORS[case]
    retensor(altered, change)
    refused(altered, "model.safetensors", *fields)


def test_another_format_of_tensors(altered):
    retensor(altered, lambda tensors: None, metadata="pt")
    refused(altered, "model.safetensors", "format")


@pytest.mark.parametrize("shape", [(3,), (2, 1, 1, 1), (1,) * 5, (2**16, 1, 1)])
def test_a_quantizer_may_not_change_shapes(altered, shape):
    """Both copies of the scale are altered alike: only its effect tells."""
    scale = np.full(shape, 0.5, np.float32)
    retensor(altered, lambda tensors: tensors.update({f"{SITE}/scale": scale}))

    def change(config):
        sites = config["quantization_config"]["sites"]
        next(site for site in sites if site["name"] in SITE)["scale"] = scale.tolist()

    rewrite(altered / "config.json", change)
    refused(altered, "config.json", "block_0/norm1_output")


def test_sites_in_another_order(altered):
    rewrite(altered / "config.json", lambda config: config["quantization_config"]["sites"].reverse())
    refused(altered, "config.json", "sites")


# Fuzzing

NASTY = (
    None, True, False, -1, 0, 1, 2, 7, 2**31, 2**63, 10**400, 0.5, -0.0, 1e308, float("nan"), float("-inf"),
    "", "../../etc/passwd", "a\nb\ud800\x00", "x" * 100_000, [], {}, [[[]]], [1] * 1000, {"a": {"b": []}},
    [2**40] * 2,
)  # fmt: skip


def places(value, path=()):
    """Every path inside a JSON value."""
    yield path
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*path, key))


def fuzz_json(directory, chance):
    path = directory / chance.choice(NAMES[:2])
    value = json.loads(path.read_text())
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        found = chance.choice([p for p in places(value) if p] or [("a",)])
        place = value
        for key in found[:-1]:
            place = place[key]
        action = chance.random()
        if action < 0.6:
            place[found[-1]] = copy.deepcopy(chance.choice(NASTY))
        elif action < 0.8:
            del place[found[-1]]
        elif isinstance(place, dict):
            place[chance.choice(("extra", "..", "", "name", "parent"))] = copy.deepcopy(chance.choice(NASTY))
        else:
            place.append(copy.deepcopy(chance.choice([*NASTY, *place])))
    path.write_text(json.dumps(value))


def fuzz_bytes(directory, chance):
    path = directory / chance.choice(NAMES)
    content = bytearray(path.read_bytes())
    for _ in range(chance.choice((1, 1, 3, 50))):
        at = chance.randrange(min(len(content), chance.choice((8, 400, 10**9))))
        action = chance.random()
        if action < 0.6:
            content[at] = chance.randrange(256)
        elif action < 0.8:
            content[at:at] = chance.randbytes(chance.choice((1, 8)))
        else:
            del content[at : at + chance.choice((1, 8, 10**9))]
        content = content or bytearray(b"\0")
    path.write_bytes(content)
    if path.name == NAMES[2] and chance.random() < 0.7:
        mend_hash(directory)


def fuzz_tensors(directory, chance):
    def change(tensors):
        for _ in range(chance.choice((1, 1, 2, 5))):
            name = chance.choice(sorted(tensors))
            value = tensors[name]
            action = chance.randrange(7)
            if action == 0:
                del tensors[name]
            elif action == 1:
                tensors[chance.choice(("../x", "a" * 5000, name + "/scale", "sites/x/bits"))] = value
            elif action == 2:
                tensors[name] = value.astype(chance.choice(("f2", "f8", "i4", "u1", "?")))
            elif action == 3:
                shape = chance.choice(((), (0,), (1, 1), (7,), (2,) * 9, (1000, 50)))
                tensors[name] = np.resize(value, shape)
            elif value.size:
                changed = value.copy().reshape(-1)
                floats = value.dtype == np.float32
                extreme = chance.choice((np.nan, np.inf, -1, 0, 1e38, 0.5) if floats else (0, 1, 127, 255))
                changed[chance.randrange(value.size)] = np.array(extreme).astype(value.dtype)
                tensors[name] = changed.reshape(value.shape)

    with np.errstate(invalid="ignore"):  # the casts are meant to be wrong
        retensor(directory, change)


@pytest.mark.parametrize("part", range(4))
def test_fuzzed_artefacts_are_refused_or_run(artefact, tmp_path, part):
    """Never another error than InputError, never slow, never large; whatever loads also runs."""
    before, outcomes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, {"refused": 0, "loaded": 0}
    for i in range(part, FUZZED, 4):
        chance = random.Random(i)
        directory = shutil.copytree(artefact, tmp_path / str(i))
        chance.choice((fuzz_json, fuzz_json, fuzz_bytes, fuzz_tensors))(directory, chance)
        start = time.process_time()
        try:
            q = load_quantized(directory)
        except InputError as error:
            assert "\n" not in str(error) and str(error).startswith(str(directory)), (i, str(error))
            outcomes["refused"] += 1
        else:
            outcomes["loaded"] += 1
            logits = jax.eval_shape(q, jax.ShapeDtypeStruct((2, *q.image_shape), jnp.float32))
            assert logits.shape == (2, q.classes)
            if q.module == MODULE:
                q(np.zeros((1, 8, 8, 3)))
        assert time.process_time() - start < 10, i
        shutil.rmtree(directory)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 400 * 1024, outcomes  # KiB
    assert outcomes["refused"] > FUZZED / 8, outcomes
