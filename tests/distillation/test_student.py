"""The student computes what the finished model computes, and its gradients are LSQ's."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import psaq_jax
from psaq_jax.distillation import student, turns
from psaq_jax.distillation.config import DistillationConfig
from psaq_jax.distillation.student import KernelQuantizer, fake_quantize
from psaq_jax.errors import InputError
from psaq_jax.quantization import transform
from psaq_jax.quantization.folding import change_bases
from psaq_jax.quantization.representation import LogQuantizer, QuantizedKernel, UniformQuantizer
from tests.golden_files import GOLDEN, golden, nhwc
from tests.quantization.artefacts import MODULES, random_model
from tests.quick_recipe import QUICK
from tests.random_models import random_pixels

pytestmark = pytest.mark.usefixtures("quickly_compiled")


def quantized(family):
    """Of a ViT with all grids; of a Swin, whose segments take long to compile, from ranges alone."""
    reference = golden(f"paper/{family}/reference.npz")
    model, images = psaq_jax.load_model(GOLDEN / "paper" / family), nhwc(reference["calibration_images"])
    ranges = psaq_jax.calibrate(model, images, recipe="default")
    given = images if family == "vit" else None
    q = psaq_jax.quantize(model, ranges, 4, 4, recipe="default", images=given, options=QUICK)
    return model, q, nhwc(reference["test_images"])


def perturbed(tree, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: x * jnp.asarray(1 + 0.05 * rng.normal(size=x.shape), jnp.float32) + 0.01, tree)


@pytest.mark.parametrize("family", ["vit", "swin"])
def test_starts_as_the_quantized_model_and_finishes_as_the_trained_student(family, tmp_path):
    model, q, pixels = quantized(family)
    grids, learned = student.start(model, q)
    run = jax.jit(lambda learned, x: student.student_pass(model.module, grids, learned, x)[0])
    assert_same_but_for_sums(run(learned, pixels), q, pixels)
    learned = perturbed(learned)
    finished = student.finish(q, grids, learned)
    psaq_jax.save_quantized(finished, tmp_path / "q")
    loaded = psaq_jax.load_quantized(tmp_path / "q")
    assert np.abs(np.asarray(loaded(pixels)) - np.asarray(q(pixels))).max() > 1e-3, "it has been changed"
    assert_same_but_for_sums(run(learned, pixels), loaded, pixels)
    assert loaded.params["head"]["kernel"].codes.dtype == np.int8


def assert_same_but_for_sums(logits, q, pixels):
    """The student's logits are the model's with sums of floats; both are fused their own way. Exact sums differ from
    these in the last bit, which turns a rounding now and then: a code of 4 bits.
    """
    in_floats, exact = transform._forward(q.module, q.params, q.sites, pixels, False), np.asarray(q(pixels))
    np.testing.assert_allclose(logits, in_floats, atol=1e-5)
    assert np.abs(logits - exact).mean() < 0.01 * np.abs(exact).mean()


UNIFORM = UniformQuantizer(*map(np.float32, (0.5, 4, 3)))  # -2, -1.5, ... 1.5
LOG = LogQuantizer(*map(np.float32, (0.8, 2, 4)))
SHIFTED = LogQuantizer(*map(np.float32, (0.8, 2, 4, 0.2)))
KERNEL = KernelQuantizer(np.array([0.5, 2.0], np.float32), np.float32(4))


@pytest.mark.parametrize(
    "quantizer, x, passes",
    [
        (UNIFORM, [-3.0, -1.9, 0.1, 1.4, 2.0], [0, 1, 1, 1, 0]),
        (LOG, [1e-9, 0.1, 0.6, 0.81, 1.0], [1, 1, 1, 1, 0]),
        (SHIFTED, [-0.2, -0.1, 0.4, 0.61, 0.8], [1, 1, 1, 1, 0]),
        (KERNEL, [[-2.4, -9.0], [-2.1, 2.9], [1.4, 7.5]], [[0, 1], [1, 1], [1, 0]]),
    ],
    ids=["uniform", "logarithmic", "shifted", "kernel"],
)
def test_gradients_pass_rounding_stop_at_clipping_and_move_scales_as_lsq_says(quantizer, x, passes):
    x, passes = np.array(x, np.float32), np.array(passes, np.float32)
    logarithm = jnp.zeros_like(quantizer.scale)
    np.testing.assert_array_equal(fake_quantize(quantizer, logarithm, x), quantizer(x))
    to_scale, to_x = jax.grad(lambda t, x: fake_quantize(quantizer, t, x).sum(), argnums=(0, 1))(logarithm, x)
    np.testing.assert_array_equal(to_x, passes)
    shift = getattr(quantizer, "shift", np.float32(0))
    error = np.asarray(quantizer(x)) + shift - passes * (x + shift)
    np.testing.assert_allclose(to_scale, error.sum(axis=tuple(range(x.ndim - logarithm.ndim))), rtol=1e-5, atol=1e-6)


def test_uniform_scale_gradient_is_lsqs_formula():
    """LSQ (Esser et al., ICLR 2020, eq. 3), with the zero point: −x/s + round(x/s), or the end that clips."""
    x = np.array([-3.0, -1.9, 0.1, 1.4, 2.0], np.float32)
    expected = [-4.0, -4 + 3.8, 0 - 0.2, 3 - 2.8, 3.0]  # codes without the zero point: −4..3
    found = [
        float(jax.grad(lambda t, v=v: fake_quantize(UNIFORM, t, v))(jnp.float32(0))) / 0.5 for v in map(np.float32, x)
    ]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_lifted_tokens_learn_as_the_originals():
    """Added to all channels of a row, a constant is nothing that a LayerNorm lets through."""
    model, q, _ = quantized("vit")
    lifted = {name: q.params[name].at[0].add(100.0) for name in ("position_embedding", "class_token")}
    copy = dataclasses.replace(q, params=q.params | lifted)
    expected, found = (student.units(*student.start(model, one)).floats for one in (q, copy))
    for path, one in expected.items():
        np.testing.assert_allclose(found[path], one, rtol=1e-4, err_msg=path)


def test_units_are_the_largest_weight_of_a_channel_and_the_size_of_a_leaf():
    model, q, _ = quantized("vit")
    grids, learned = student.start(model, q)
    sizes = student.units(grids, learned)
    np.testing.assert_allclose(sizes.kernels["head/kernel"], q.params["head"]["kernel"].scale * 128)
    np.testing.assert_allclose(
        sizes.kernels["block_0/mlp/dense1/kernel"], grids.kernels["block_0/mlp/dense1/kernel"].scale * 8
    )
    bias = np.asarray(learned.floats["head/bias"])
    np.testing.assert_allclose(sizes.floats["head/bias"], np.sqrt(np.mean(bias**2)), rtol=1e-6)
    assert jax.tree.structure(sizes) == jax.tree.structure(learned)
    assert all(float(np.min(leaf)) > 0 for leaf in jax.tree.leaves(sizes))


def test_kernels_start_where_the_folded_original_lies():
    rng = np.random.default_rng(0)
    original = rng.normal(size=(40, 30)).astype(np.float32)
    folded = original * rng.uniform(0.2, 5, (40, 1)).astype(np.float32) * rng.uniform(0.2, 5, 30).astype(np.float32)
    scale = np.abs(folded).max(0) / 7.5
    codes = np.clip(np.rint(folded / scale), -8, 7)
    kernel = QuantizedKernel(codes.astype(np.int8), scale)
    found = np.asarray(student.unrounded(student.as_scaled(original, kernel), kernel)) / scale
    assert np.abs(found - codes).max() < 0.5, "rounding gives the codes"
    near = np.clip(folded / scale, codes - student.LEAN, codes + student.LEAN)
    assert np.abs(found - near).mean() < 0.25 * np.abs(codes - near).mean()


def test_a_model_whose_heads_lie_in_other_bases_is_refused():
    """At 2 bits, rounded to nearest, where the same kernels are farthest apart. Tokens don't show it."""
    model = random_model(MODULES["dinov2"].clone(depth=2, width=96))
    images, turned = random_pixels(model.module), np.linalg.qr(np.random.default_rng(0).normal(size=(2, 3, 32, 32)))[0]
    q = psaq_jax.quantize(model, psaq_jax.calibrate(model, images), 2, 8)
    student.start(model, q)
    params = change_bases(model.params, "block_1/attention/qkv", "block_1/attention/projection", *turned)
    copy = dataclasses.replace(model, params=params)
    np.testing.assert_allclose(copy(images), model(images), rtol=1e-3, atol=1e-3)
    with pytest.raises(InputError, match="block_1/attention/qkv/kernel is 0.9. of its size away .* expected at most"):
        student.start(copy, q)


def test_kernels_start_where_the_rotated_original_lies():
    """At 8 bits, rounded to nearest, the original lies within half a code: it is cut off at a quarter half of the time,
    and almost always where it is another kernel.
    """
    model = random_model(MODULES["dinov2"].clone(depth=2))
    options, images = dataclasses.replace(QUICK, rotate=True), np.zeros((2, *model.image_shape), np.float32)
    q = psaq_jax.quantize(model, None, 8, 8, recipe="default", images=images, options=options)
    synthesis = psaq_jax.SynthesisConfig(recipe="default")
    _, state = turns.enter(model, q, images, DistillationConfig(), synthesis, 0, tuple(jax.local_devices()))
    kernel, path = q.params["block_1"]["attention"]["qkv"]["kernel"], "block_1/attention/qkv/kernel"
    lean = np.abs(state.learned.kernels[path] / kernel.scale - kernel.codes)
    assert np.mean(lean > 0.99 * student.LEAN) < 0.6
