"""Swin against the published code's own numbers (tests/golden/paper/swin), recipe "paper"."""

import jax
import numpy as np
import pytest

import psaq_jax
from psaq_jax.quantization.recipes import site_filter
from psaq_jax.sites import record
from psaq_jax.synthesis import loop
from tests.golden_files import GOLDEN, golden, nhwc

BLOCK = {  # the release's names within a block: ours
    "qact1": "norm1_output",
    "attn.qact1": "attention/qkv_output",
    "attn.qact_attn1": "attention/attention_logits",
    "attn.qact_table": "attention/relative_position_table",
    "attn.qact2": "attention/attention_logits_biased",
    "attn.qact3": "attention/attention_output",
    "attn.qact4": "attention/projection_output",
    "qact2": "residual1",
    "qact3": "norm2_output",
    "mlp.QuantAct1": "mlp/activation_output",
    "mlp.QuantAct2": "mlp/dense2_output",
    "qact4": "residual2",
}
OTHERS = {
    "qact_input": "input",
    "patch_embed.QuantAct_before_norm": "patch_embedding_output",
    "patch_embed.QuantAct": "patch_embedding_norm_output",
    "layers.0.downsample.qact1": "stage_0/merging/norm_output",
    "layers.0.downsample.qact2": "stage_0/merging/reduction_output",
    "qact2": "norm_output",
    "qact3": "head_input",
    "act_out": "logits",
}


def our_name(name):
    if name in OTHERS:
        return OTHERS[name]
    _, stage, _, block, rest = name.split(".", 4)
    return f"stage_{stage}/block_{block}/{BLOCK[rest]}"


@pytest.fixture(scope="module")
def reference():
    return golden("paper/swin/reference.npz")


@pytest.fixture(scope="module")
def model():
    return psaq_jax.load_model(GOLDEN / "paper/swin")


@pytest.fixture(scope="module")
def ranges(model, reference):
    return psaq_jax.calibrate(model, nhwc(reference["calibration_images"]))


def test_float_logits(model, reference):
    # Logits of order 1 after 4 blocks: float32 sums in another order.
    np.testing.assert_allclose(model(nhwc(reference["test_images"])), reference["logits_float"], atol=4e-6)


def test_the_56_sites_run_in_the_order_of_the_paper(model, ranges):
    block = list(BLOCK.values())
    expected = ["input", "patch_embedding_output", "patch_embedding_norm_output"]
    for stage in range(2):
        expected += [f"stage_{stage}/block_{i}/{name}" for i in range(2) for name in block]
        expected += ["stage_0/merging/norm_output", "stage_0/merging/reduction_output"] * (stage == 0)
    expected += ["norm_output", "head_input", "logits"]
    assert len(expected) == 56
    assert list(ranges) == expected
    wanted = site_filter("paper")
    assert [site for site in model.sites if wanted(site)] == expected


def test_ranges_of_all_sites(reference, ranges):
    names = [our_name(str(name)) for name in reference["site_names"]]
    assert sorted(names) == sorted(ranges)
    found = np.asarray([ranges[name] for name in names])
    np.testing.assert_allclose(found, reference["site_min_max"], rtol=1e-5, atol=4e-6)


@pytest.mark.parametrize(
    ("weight_bits", "activation_bits", "equal"),
    # One rounding that falls the other way moves every later activation, so at 8 and 6 bits codes differ by a few.
    [(8, 8, 0.25), (4, 8, 0.25), (6, 6, 0.5), (4, 4, 1.0)],
)
def test_quantized_logits(model, ranges, reference, weight_bits, activation_bits, equal):
    q = psaq_jax.quantize(model, ranges, weight_bits, activation_bits, recipe="paper")
    scale = (ranges["logits"][1] - ranges["logits"][0]) / (2**activation_bits - 1)
    found = np.round(np.asarray(q(nhwc(reference["test_images"]))) / scale)
    expected = np.round(reference[f"logits_w{weight_bits}a{activation_bits}"] / scale)
    assert (found == expected).mean() >= equal
    assert abs(found - expected).max() <= (0 if equal == 1 else 3)


def test_attention_of_step_0_is_one_site_a_block_windows_image_major(model, reference):
    images = nhwc(reference["synthesis/initial"])
    offset, flip = reference["synthesis/offsets"][0], reference["synthesis/flips"][0]
    apply = jax.jit(lambda x: record(model.module, model.params, x, "*/attention_output")[1])
    attention = apply(loop.jitter(images, offset, flip))
    assert len(attention) == 4
    for i, found in enumerate(attention.values()):
        expected = reference[f"synthesis/step0/attention_{i}"]
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, atol=4e-6)


@pytest.fixture(scope="module")
def gradient():
    @jax.jit
    def value_and_grad(model, images, offset, flip, labels, target):
        def loss(x):
            return loop.objective(model, loop.jitter(x, offset, flip), labels, target)

        return jax.value_and_grad(loss, has_aux=True)(images)

    return value_and_grad


def test_six_synthesis_steps(model, reference, gradient):
    images = [nhwc(reference["synthesis/initial"]), *(nhwc(x) for x in reference["synthesis/images"])]
    labels, target = reference["synthesis/labels"], reference["synthesis/tv_target"]
    losses = reference["synthesis/losses_total_ce_tv_entropy_then_layers"]
    rates = reference["synthesis/learning_rates"]
    state = loop.GroupState(images[0], loop.adam().init(images[0]), labels, target, None)
    for i in range(6):
        state = state._replace(variables=images[i])  # from the reference's image: free runs diverge, as Adam is chaotic
        offset, flip = reference["synthesis/offsets"][i], reference["synthesis/flips"][i]
        (_, terms), found = gradient(model, images[i], offset, flip, labels, target)
        if i == 0:
            expected = nhwc(reference["synthesis/step0/grad"])
            # The bandwidth multiplies rounding: of float64's gradient the release's is 3.3e-5 off, ours 2.6e-5.
            np.testing.assert_allclose(found, expected, atol=1e-4 * abs(expected).max())
        for name, value in zip(("loss", "cross_entropy", "total_variation", "entropy"), losses[i], strict=False):
            # Differences of sums over 800,000 similarities and 12,000 pixels.
            np.testing.assert_allclose(terms[name], value, rtol=2e-5, err_msg=f"step {i}: {name}")
        rate = loop.learning_rate(rates.max(), i, 2, 6)
        np.testing.assert_allclose(rate, rates[i], rtol=1e-6)
        state = loop.update(state, found, rate)
        error = abs(state.variables - images[i + 1])
        assert error.mean() < 4e-6  # single pixels differ more: Adam divides tiny gradients
