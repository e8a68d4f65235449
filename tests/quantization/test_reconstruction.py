"""Block reconstruction: it starts at GPTQ's rounding, lowers the blocks' error and leaves whole codes."""

import jax
import numpy as np
import pytest

import psaq_jax
from psaq_jax.quantization import reconstruction
from psaq_jax.quantization.recipes import DefaultRecipe
from psaq_jax.quantization.representation import QuantizedKernel, UniformQuantizer
from tests.golden_files import GOLDEN, golden, nhwc

REFERENCE = golden("paper/vit/reference.npz")
TEST, CALIBRATION = nhwc(REFERENCE["test_images"]), nhwc(REFERENCE["calibration_images"])


@pytest.fixture(scope="module")
def model():
    return psaq_jax.load_model(GOLDEN / "paper" / "vit")


def test_starts_where_the_weights_were_rounded():
    generator = np.random.default_rng(0)
    target, scale = generator.normal(size=(6, 4)).astype(np.float32), np.full(4, 0.2, np.float32)
    codes = np.clip(np.rint(target / scale), -8, 7)
    rounded = reconstruction.Rounded(QuantizedKernel(codes.astype(np.int8), scale), target)
    params = {"layer": {"kernel": codes * scale, "bias": np.zeros(4, np.float32)}}
    problem, learned = reconstruction.start(params, {"layer": rounded}, {"layer": 4}, {})
    _, layers, _ = reconstruction.finish(problem, learned)
    np.testing.assert_array_equal(layers["layer"].kernel.codes, codes)
    soft = problem.floors["layer"] + reconstruction.up(learned["rounding"]["layer"])
    np.testing.assert_allclose(soft, np.clip(target / scale, -8, 7), atol=1e-5)


def test_straight_through_is_the_quantizer_and_stops_gradients_where_it_clips():
    quantizer = UniformQuantizer(*map(np.float32, (0.5, 4, 3)))
    x = np.array([-3.0, -1.9, 0.1, 1.4, 2.0], np.float32)
    np.testing.assert_allclose(reconstruction.straight_through(quantizer, x), quantizer(x))
    gradient = jax.grad(lambda x: reconstruction.straight_through(quantizer, x).sum())(x)
    np.testing.assert_array_equal(gradient, [0, 1, 1, 1, 0])


def test_brings_the_logits_nearer_to_float(model):
    ranges = psaq_jax.calibrate(model, CALIBRATION, recipe="default")
    errors = {}
    for reconstruct in (False, True):
        options = DefaultRecipe(reconstruct=reconstruct, reconstruction_steps=60, reconstruction_batch=8)
        q = psaq_jax.quantize(model, ranges, 3, 4, recipe="default", images=CALIBRATION, options=options)
        errors[reconstruct] = float(np.mean(np.square(q(CALIBRATION) - model(CALIBRATION))))
    assert errors[True] < 0.8 * errors[False]
    assert q.params["block_0"]["mlp"]["dense1"]["kernel"].codes.dtype == np.int8
