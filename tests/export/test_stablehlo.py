"""StableHLO files: run by jax alone, integer weights, any batch, nothing written that does not run."""

import hashlib
import json
import resource
import signal
import subprocess
import sys

import flatbuffers
import numpy as np
import pytest
import safetensors.numpy
from jax import export

from psaq_jax import InputError, calibrate, quantize, save_quantized
from psaq_jax.export import checking
from psaq_jax.export.description import read_descriptions
from psaq_jax.export.onnx_file import export_onnx
from psaq_jax.export.stablehlo import export_stablehlo, named_arrays, restored, stablehlo_bytes, stored_arrays
from psaq_jax.quantization.integer import integer_model
from tests.export.small_models import SWIN, VITS, random_model, random_quantized
from tests.random_models import VIT, random_pixels

pytestmark = pytest.mark.usefixtures("quickly_compiled")

# -I: neither the working directory nor PYTHONPATH; an installed psaq_jax is kept out by hand.
LOADER = """
import sys
sys.modules["psaq_jax"] = sys.modules["flax"] = None
import numpy as np, safetensors.numpy
from jax import export
folder, beside = sys.argv[1], sys.argv[2] == "beside"
with open(folder + "/model.stablehlo", "rb") as file:
    model = export.deserialize(bytearray(file.read()))
weights = (safetensors.numpy.load_file(folder + "/model.safetensors"),) if beside else ()
np.save(folder + "/logits.npy", model.call(*weights, np.load(folder + "/pixels.npy")))
"""


def model_of(kind):
    if kind == "float":
        return random_model()
    if kind == "swin":
        return random_quantized(SWIN)
    q = random_quantized(VIT, 4, 8)
    return integer_model(q) if kind == "integer" else q


@pytest.mark.parametrize(
    ("kind", "weights"),
    [("float", "inside"), ("simulated", "beside"), ("integer", "inside"), ("integer", "beside"), ("swin", "inside")],
)
def test_a_process_without_psaq_jax_gets_the_same_logits(tmp_path, kind, weights):
    model = model_of(kind)
    export_stablehlo(model, tmp_path, weights)
    pixels = random_pixels(model.module)
    np.save(tmp_path / "pixels.npy", pixels)
    subprocess.run([sys.executable, "-I", "-c", LOADER, str(tmp_path), weights], check=True, timeout=120)
    found, expected = np.load(tmp_path / "logits.npy"), np.asarray(model(pixels))
    assert found.shape == expected.shape
    # Another program is fused in another way; a rounding that turns around is a step of an activation.
    tolerance = 1e-4 if kind == "float" else checking.step(model, expected)
    assert np.abs(found - expected).mean() <= tolerance


@pytest.mark.parametrize("name", ["vit", "distilled"])
def test_bfloat16_is_exported(tmp_path, name):
    """Its last bit is a thousandth of float32's tolerance and more, and turns more roundings."""
    model = random_model(VITS[name]).with_dtype("bfloat16")
    pixels = random_pixels(model.module)
    q = quantize(model, calibrate(model, pixels))
    for one in (model, q):
        export_stablehlo(one, tmp_path)
    with pytest.raises(InputError, match="off on average"):
        checking.check(lambda x: 1.2 * np.asarray(model(x)), model, "FILE")


def test_the_description(tmp_path):
    written = export_stablehlo(random_quantized(), tmp_path, "beside")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in written)
    description = json.loads((tmp_path / "export.json").read_text())
    assert description["platforms"] == ["cpu", "cuda", "tpu"]
    assert description["input"]["shape"] == ["batch", 16, 20, 3]
    assert description["normalisation"] == {"mean": [0.4] * 3, "std": [0.2] * 3}
    assert description["labels"] == ["a", "b", "c", "d", "e"]
    quantized = {"weight_bits": 4, "activation_bits": 8, "recipe": "paper", "distillations": []}
    assert description["quantization"] == quantized
    assert description["preprocessing"]["image_size"] == [16, 20]
    assert description["output"] == {"name": "logits", "dtype": "float32", "shape": ["batch", 5]}
    assert description["checked"]["mean_difference"] <= description["checked"]["tolerance"]
    assert set(description["files"]) == {"model.stablehlo", "model.safetensors"}
    assert description["versions"].keys() >= {"psaq_jax", "jax"}


def described(folder) -> dict[str, dict]:
    """{format: its description}; every file beside export.json is described, with its hash."""
    newest = json.loads((folder / "export.json").read_text())
    found = {newest["format"]: newest, **newest.get("others", {})}
    hashes = {name: digest for description in found.values() for name, digest in description["files"].items()}
    present = [path for path in folder.iterdir() if path.name != "export.json"]
    assert hashes == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in present}
    return found


def test_formats_share_a_folder(tmp_path):
    """Each keeps its description, however often either is exported anew."""
    model = random_model()
    for _ in range(2):
        export_stablehlo(model, tmp_path, "beside", ("cpu",))
        export_onnx(model, tmp_path)
    found = described(tmp_path)
    assert set(found) == {"onnx", "stablehlo"} and found["stablehlo"]["weights"] == "beside"
    assert all("others" not in description for description in found["onnx"]["others"].values())


def test_weights_inside_remove_those_that_were_beside(tmp_path):
    for weights in ("beside", "inside", "beside"):
        export_stablehlo(random_model(), tmp_path, weights, ("cpu",))
        assert described(tmp_path)["stablehlo"]["weights"] == weights
    (tmp_path / "model.safetensors").write_text("a checkpoint's")
    export_stablehlo(random_model(), tmp_path, "inside", ("cpu",))
    assert (tmp_path / "model.safetensors").read_text() == "a checkpoint's"


@pytest.mark.parametrize("text", ["{", "[]", '{"format": ["stablehlo"], "others": 1}', '{"others": {"stablehlo": 1}}'])
def test_a_description_of_no_export_is_none(tmp_path, text):
    (tmp_path / "export.json").write_text(text)
    assert not read_descriptions(tmp_path)


def test_platforms_and_symbolic_batch(tmp_path):
    export_stablehlo(random_quantized(), tmp_path)
    loaded = export.deserialize(bytearray((tmp_path / "model.stablehlo").read_bytes()))
    assert loaded.platforms == ("cpu", "cuda", "tpu")
    assert str(loaded.in_avals[0].shape) == "(b, 16, 20, 3)" and loaded.out_avals[0].shape[1] == 5


def test_weights_beside_are_integers(tmp_path):
    export_stablehlo(random_quantized(weight_bits=8), tmp_path, "beside")
    tensors = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    codes = {name for name, x in tensors.items() if x.dtype == np.int8}
    assert len(codes) == 2 + 4 * VIT.depth and all(name.endswith("kernel/codes") for name in codes)
    floats = [x.size for name, x in tensors.items() if x.dtype == np.float32]
    assert max(floats) <= 17 * 24  # the position table


def test_four_bits_are_packed():
    q = random_quantized(VIT, 4, 8)
    arrays, tensors = named_arrays(q), stored_arrays(q)
    packed = {name: x for name, x in tensors.items() if x.dtype == np.uint8}
    codes = {name: x for name, x in arrays.items() if x.dtype == np.int8}
    assert sum(x.nbytes for x in packed.values()) * 2 == sum(x.size for x in codes.values())
    assert not any(x.dtype == np.int8 for x in tensors.values())
    for name, x in named_arrays(restored(q, tensors)).items():
        np.testing.assert_array_equal(x, arrays[name], strict=True)


@pytest.mark.parametrize(("bits", "bytes_a_weight"), [(8, 1), (4, 0.5)])
def test_weights_inside_are_integers(bits, bytes_a_weight):
    wide = VIT.clone(width=96, hidden=384, depth=1)
    q, kernels = random_quantized(wide, bits), 12 * 96 * 96
    content = stablehlo_bytes(q, stored_arrays(q), platforms=("cpu",))
    assert bytes_a_weight * kernels < len(content) < (bytes_a_weight + 0.9) * kernels


def test_what_is_off_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(checking, "FLOAT_TOLERANCE", -1.0)
    with pytest.raises(InputError, match="model.stablehlo: its logits are .* off on average"):
        export_stablehlo(random_model(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_artefacts_folder_takes_no_export(tmp_path):
    """It could not be saved there again."""
    q = random_quantized()
    save_quantized(q, tmp_path)
    for weights in ("inside", "beside"):
        with pytest.raises(InputError, match="holds a saved quantized model"):
            export_stablehlo(q, tmp_path, weights)
    save_quantized(q, tmp_path)


def test_weights_beside_replace_exported_ones_alone(tmp_path):
    """A checkpoint's own weights have the same name."""
    (tmp_path / "model.safetensors").write_text("a checkpoint's")
    for _ in range(2):
        with pytest.raises(InputError, match=r"model\.safetensors: is there and was not exported"):
            export_stablehlo(random_model(), tmp_path, "beside")
        assert (tmp_path / "model.safetensors").read_text() == "a checkpoint's"
        export_stablehlo(random_model(), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    export_stablehlo(random_model(), tmp_path, "beside")
    (tmp_path / "export.json").unlink()  # of a run that was killed before it
    export_stablehlo(random_model(), tmp_path, "beside")
    export_stablehlo(random_model(), tmp_path)
    assert not (tmp_path / "model.safetensors").exists()


def test_a_full_disk_leaves_the_earlier_export(tmp_path):
    sizes = [path.stat().st_size for path in export_stablehlo(random_model(), tmp_path / "elsewhere", "beside")]
    export_stablehlo(random_model(), tmp_path / "export")
    before = {path.name: path.read_bytes() for path in (tmp_path / "export").iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:  # room for any of the files but one
        resource.setrlimit(resource.RLIMIT_FSIZE, (max(sizes) - 1, hard))
        with pytest.raises(InputError, match=r"cannot be written \(File too large\); free some space"):
            export_stablehlo(random_model(), tmp_path / "export", "beside")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert {path.name: path.read_bytes() for path in (tmp_path / "export").iterdir()} == before


def test_more_than_the_format_holds_is_named(monkeypatch):
    monkeypatch.setattr(flatbuffers.Builder, "MAX_BUFFER_SIZE", 2**12)
    with pytest.raises(InputError, match="its format ends at 2 GiB, .*; give weights='beside'"):
        export_stablehlo(random_model(), "unused")


def test_an_unknown_place():
    with pytest.raises(InputError, match="inside, beside"):
        export_stablehlo(random_model(), "unused", "elsewhere")


@pytest.mark.parametrize("platforms, message", [
    (("tpu",), r"platforms is \('tpu',\), expected '\w+' too, where the exported file is tried"),
    (("cpu", "metal"), r"platforms is \('cpu', 'metal'\), expected some of"), ("cpu", "expected some of"),
    ((), "expected some of"),
])  # fmt: skip
def test_platforms_are_known_and_this_machine_s_among_them(platforms, message):
    with pytest.raises(InputError, match=message):
        export_stablehlo(random_model(), "unused", platforms=platforms)
