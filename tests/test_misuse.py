"""The public functions say in one line what they were given in another's place."""

import dataclasses
import json

import numpy as np
import pytest

import psaq_jax
from psaq_jax import InputError
from psaq_jax.distillation.driver import distill
from psaq_jax.evaluation import Metrics
from psaq_jax.export.onnx_file import export_onnx
from psaq_jax.export.stablehlo import export_stablehlo
from psaq_jax.quantization.recipes import DefaultRecipe
from psaq_jax.report.similarity import similarities
from tests.golden_files import GOLDEN

IMAGES = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
RAW = np.zeros((2, 32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def models():
    model = psaq_jax.load_model(GOLDEN / "paper" / "vit")
    ranges = psaq_jax.calibrate(model, IMAGES)
    return model, ranges, psaq_jax.quantize(model, ranges)


MISUSES = {
    "raw pixels to a model": (lambda model, ranges, q: model(RAW), "images are uint8, expected normalised floats"),
    "raw pixels to a quantized one": (lambda model, ranges, q: q(RAW), "images are uint8, expected normalised floats"),
    "raw pixels to calibrate": (lambda model, ranges, q: psaq_jax.calibrate(model, RAW), "images are uint8, expected"),
    "one image": (lambda model, ranges, q: model(IMAGES[0]), "are [32, 32, 3], expected one or more of 32x32x3"),
    "smaller images": (lambda model, ranges, q: q(IMAGES[:, :16]), "are [2, 16, 32, 3], expected one or more of"),
    "channels first": (lambda model, ranges, q: model(IMAGES.transpose(0, 3, 1, 2)), "are [2, 3, 32, 32], expected"),
    "no images": (lambda model, ranges, q: psaq_jax.calibrate(model, IMAGES[:0]), "are [0, 32, 32, 3], expected one"),
    "no ranges": (lambda model, ranges, q: psaq_jax.quantize(model, None), "ranges are NoneType, expected what cal"),
    "ranges that are none": (
        lambda model, ranges, q: psaq_jax.quantize(model, ranges | {"input": (0.0, 1.0, 2.0)}),
        "the range of site input is (0.0, 1.0, 2.0), expected finite minimum <= maximum",
    ),
    "ranges whose width overflows": (
        lambda model, ranges, q: psaq_jax.quantize(model, ranges | {"input": (-3e38, 3e38)}),
        "the range of site input is (-3e+38, 3e+38), expected finite minimum <= maximum, and so their difference in",
    ),
    "ranges beyond float32": (
        lambda model, ranges, q: psaq_jax.quantize(model, ranges | {"input": (-1e300, 1e300)}),
        "the range of site input is (-1e+300, 1e+300), expected finite",
    ),
    "ranges of text": (
        lambda model, ranges, q: psaq_jax.quantize(model, ranges | {"input": ("0", "1")}),
        "the range of site input is ('0', '1'), expected finite",
    ),
    "ranges of complex numbers": (
        lambda model, ranges, q: psaq_jax.quantize(model, ranges | {"input": (0j, 1j)}),
        "the range of site input is (0j, 1j), expected finite",
    ),
    "a range of one number": (
        lambda model, ranges, q: psaq_jax.quantize(model, ranges | {"input": 1.0}),
        "site input is 1.0, expected finite",
    ),
    "options for the paper": (
        lambda model, ranges, q: psaq_jax.quantize(model, ranges, options=DefaultRecipe()),
        'the recipe is "paper"',
    ),
    "options of a dictionary": (
        lambda model, ranges, q: psaq_jax.quantize(model, ranges, options={"gptq": False}),
        "options are dict, expected",
    ),
    "a config of a dictionary": (
        lambda model, ranges, q: psaq_jax.synthesize(model, {"iterations": 3}),
        "config is dict, expected a Synthesis",
    ),
    "an empty config": (lambda model, ranges, q: psaq_jax.synthesize(model, {}), "config is dict, expected a Synth"),
    "an empty config of a distillation": (
        lambda model, ranges, q: distill(model, q, IMAGES, {}),
        "config is dict, expected a DistillationConfig",
    ),
    "bits by a number": (
        lambda model, ranges, q: psaq_jax.quantize(model, ranges, {1: 2, "a": 3}),
        "weight_bits: layer 1 is missing or",
    ),
    "a list of recipes": (lambda model, ranges, q: psaq_jax.calibrate(model, IMAGES, ["paper"]), "recipe is ['paper']"),
    "images of two shapes": (
        lambda model, ranges, q: psaq_jax.evaluate(q, ([RAW[0], RAW[0, :16]], [0, 1])),
        "images or labels of several sh",
    ),
    "workers": (
        lambda model, ranges, q: psaq_jax.evaluate(q, (RAW, [0, 1]), workers=None),
        "workers is None, expected a whole",
    ),
    "no batch": (lambda model, ranges, q: psaq_jax.calibrate(model, IMAGES, batch_size=0), "batch_size is 0, expected"),
    "calibrated twice": (lambda model, ranges, q: psaq_jax.calibrate(q, IMAGES), "a float model, found QuantizedModel"),
    "two float models": (lambda model, ranges, q: distill(model, model, IMAGES), "a quantized model too, found Model"),
    "two architectures": (
        lambda model, ranges, q: distill(model.replace(module=model.module.clone(heads=1)), q, IMAGES),
        "distill: the quantized model has another architecture",
    ),
    "a raw pixel's similarities": (lambda model, ranges, q: similarities(model, RAW[0]), "images are uint8, ex"),
    "figures": (
        lambda model, ranges, q: psaq_jax.save_quantized(q, "no", Metrics(1.0, 2.0, 3.0, 4)),
        "figures are Metrics, exp",
    ),
    "a platform": (lambda model, ranges, q: export_stablehlo(model, "no", platforms="cpu"), "platforms is 'cpu', ex"),
    "another machine's platform": (
        lambda model, ranges, q: export_stablehlo(model, "no", platforms=("tpu",)),
        "is ('tpu',), expected 'cpu' too",
    ),
    "no model to export": (lambda *_: export_stablehlo("DIR", "no"), "export_stablehlo takes a float or quantized mod"),
    "none for ONNX": (lambda *_: export_onnx("DIR", "no"), "export_onnx takes a float or quantized model, found str"),
    "no folder to export to": (lambda model, ranges, q: export_onnx(model, ""), "export's directory is '', expected"),
    "a bucket to export to": (lambda model, ranges, q: export_onnx(q, "gs://b/x"), "directory is 'gs://b/x', expected"),
    "a name with a zero byte": (
        lambda model, ranges, q: psaq_jax.save_quantized(q, "a\0b"),
        r"is 'a\x00b', expected the path of a folder",
    ),
    "a bucket to save in": (lambda model, ranges, q: psaq_jax.save_quantized(q, "gs://b"), "is 'gs://b', expected the"),
    "a float model as an artefact": (
        lambda model, ranges, q: psaq_jax.load_quantized(model.source),
        "this is no quantized model; load_model reads",
    ),
    "quantized twice": (lambda model, ranges, q: psaq_jax.quantize(q, ranges), "a float model, found QuantizedModel"),
    "of a quantized one": (lambda model, ranges, q: psaq_jax.synthesize(q), "a float model, found QuantizedModel"),
    "no seed": (lambda model, ranges, q: psaq_jax.synthesize(model, seed=-1), "seed is -1, expected a whole number"),
    "a float model saved": (lambda model, ranges, q: psaq_jax.save_quantized(model, "no"), "quantized model, found"),
    "labels that are no texts": (
        lambda model, ranges, q: psaq_jax.save_quantized(dataclasses.replace(q, labels=(1, 2)), "no"),
        "the model's labels are (1, 2), expected 10 texts, one a class, or (); give it such labels",
    ),
    "a bucket to reconstruct in": (
        lambda model, ranges, q: psaq_jax.quantize(
            model, None, 4, 4, "default", IMAGES, options=DefaultRecipe(), folder="gs://b"
        ),
        "folder is 'gs://b', expected the path of a folder here",
    ),
    "a file to reconstruct in": (
        lambda model, ranges, q: psaq_jax.quantize(model, None, 4, 4, "default", IMAGES, folder=__file__),
        "test_misuse.py', a file, expected the path of a folder",
    ),
    "no folder to save in": (lambda model, ranges, q: psaq_jax.save_quantized(q, ""), "directory is '', expected the"),
    "no folder to load": (lambda *_: psaq_jax.load_quantized(None), "directory is None, expected the path of a folder"),
    "no model": (lambda *_: psaq_jax.evaluate("DIR", "bundled:fashion_mnist"), "float or quantized model, found str"),
    "no data": (lambda model, ranges, q: psaq_jax.evaluate(q, None), "found NoneType, expected a spec, a Dataset or"),
}


def test_numpys_numbers_are_numbers(models):
    """As of `for bits in np.arange(2, 9)`; settings become Python's, for JSON has no others."""
    config = psaq_jax.SynthesisConfig(num_images=np.int64(4), group_size=np.int32(2), bandwidth=np.float32(0.5))
    assert config == psaq_jax.SynthesisConfig(num_images=4, group_size=2, bandwidth=0.5)
    json.dumps(dataclasses.asdict(config))
    model, ranges, _ = models
    q = psaq_jax.quantize(model, ranges, np.int64(4), np.int32(8))
    many = np.zeros((300, 32, 32, 3), np.uint8), np.zeros(300, int)
    assert psaq_jax.evaluate(q, many, batch_size=np.uint8(100), workers=np.int8(0)).examples == 300
    found = psaq_jax.calibrate(model, np.tile(IMAGES, (75, 1, 1, 1)), batch_size=np.uint8(100))
    assert found.keys() == ranges.keys()


@pytest.mark.parametrize("name", MISUSES)
def test_misuse_is_named(models, name):
    function, message = MISUSES[name]
    with pytest.raises(InputError) as error:
        function(*models)
    assert message in str(error.value) and "\n" not in str(error.value)
