"""Recipe "paper" on the reference ViT: ranges of the 37 sites, logits at four settings; and what quantize refuses."""

import jax
import numpy as np
import pytest

import psaq_jax
from psaq_jax import meshes
from psaq_jax.quantization import calibration
from tests.golden_files import GOLDEN, golden, nhwc

REFERENCE = golden("paper/vit/reference.npz")
TEST, CALIBRATION = nhwc(REFERENCE["test_images"]), nhwc(REFERENCE["calibration_images"])
BLOCK = {  # ours -> the release's
    "norm1_output": "qact1", "attention/qkv_output": "attn.qact1", "attention/attention_logits": "attn.qact_attn1",
    "attention/attention_output": "attn.qact2", "attention/projection_output": "attn.qact3", "residual1": "qact2",
    "norm2_output": "qact3", "mlp/activation_output": "mlp.QuantAct1", "mlp/dense2_output": "mlp.QuantAct2",
    "residual2": "qact4",
}  # fmt: skip
NAMES = {
    "input": "qact_input", "patch_embedding_output": "patch_embed.QuantAct", "tokens": "qact_embed",
    "position_embedding_table": "qact_pos", "embedded": "qact1",
    **{f"block_{i}/{ours}": f"blocks.{i}.{theirs}" for i in range(3) for ours, theirs in BLOCK.items()},
    "head_input": "qact2", "logits": "act_out",
}  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return psaq_jax.load_model(GOLDEN / "paper" / "vit")


@pytest.fixture(scope="module")
def ranges(model):
    return psaq_jax.calibrate(model, CALIBRATION)


def test_float_logits_match_the_release(model):
    np.testing.assert_allclose(model(TEST), REFERENCE["logits_float"], atol=5e-6)  # seen: 1.3e-6


def test_ranges_of_all_37_sites_match_the_release_in_running_order(ranges):
    assert list(ranges) == list(NAMES)
    theirs = dict(zip(REFERENCE["site_names"], REFERENCE["site_min_max"], strict=True))
    for ours, name in NAMES.items():
        np.testing.assert_allclose(ranges[ours], theirs[name], rtol=1e-5, atol=5e-6, err_msg=ours)  # seen: 2.9e-6


@pytest.mark.parametrize("weight_bits, activation_bits, equal", [(8, 8, 0.25), (4, 8, 0.25), (6, 6, 0.25), (4, 4, 1.0)])
def test_logits_match_the_release(model, ranges, weight_bits, activation_bits, equal):
    """In codes of the last site: at 4 bits every one; above, one rounding that falls the other way in an early site
    (its input differs in the last bit) moves all that follows by a step or a few, so a share must be equal."""
    q = psaq_jax.quantize(model, ranges, weight_bits, activation_bits)
    scale = q.sites["logits"].scale
    ours = np.rint(q(TEST) / scale)
    theirs = np.rint(REFERENCE[f"logits_w{weight_bits}a{activation_bits}"] / scale)
    assert (ours == theirs).mean() >= equal
    assert np.abs(ours - theirs).max() <= 8  # of 63 or 255 steps


def test_ranges_do_not_depend_on_the_batch(model, ranges):
    for batch_size in (3, 8):
        for name, pair in psaq_jax.calibrate(model, CALIBRATION, batch_size=batch_size).items():
            np.testing.assert_allclose(pair, ranges[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_new_ranges_bits_and_images_compile_nothing(model, ranges, compilations):
    psaq_jax.quantize(model, psaq_jax.calibrate(model, CALIBRATION), 4, 8)(TEST)
    with compilations() as count:
        again = psaq_jax.calibrate(model, CALIBRATION[::-1] * 0.9)
        psaq_jax.quantize(model, again, 6, 6)(TEST * 0.5)
    assert count() == 0


def test_biases_and_norms_stay_float_and_kernels_do_not(model, ranges):
    q = psaq_jax.quantize(model, ranges, 4, 8)
    leaves = jax.tree_util.tree_leaves_with_path(q.params)
    kernels = [leaf for path, leaf in leaves if "codes" in jax.tree_util.keystr(path)]
    assert len(kernels) == 3 * 4 + 2 and all(k.dtype == np.int8 and abs(k).max() <= 8 for k in kernels)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda r: {k: v for k, v in r.items() if k != "logits"}, "missing logits"),
        (lambda r: r | {"nowhere": (0, 1)}, "unknown nowhere"),
        (lambda r: {1: (0, 1)}, r"missing input, .* more; unknown 1;"),
        (lambda r: r | {"logits": (0, np.nan)}, "site logits is .*finite"),
        (lambda r: r | {"logits": (2, 1)}, "site logits is .*minimum <= maximum"),
    ],
)
def test_ranges_that_do_not_fit_are_named(model, ranges, change, message):
    with pytest.raises(psaq_jax.InputError, match=message):
        psaq_jax.quantize(model, change(dict(ranges)), 8, 8)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_model_of_broken_parameters_is_refused(model, ranges, value):
    params = jax.tree.map(lambda x: x, model.params)
    params["head"]["kernel"] = params["head"]["kernel"].at[0, 0].set(value)
    with pytest.raises(psaq_jax.InputError, match=r"parameters that are NaN or infinite in head/kernel; expected"):
        psaq_jax.quantize(model.replace(params=params), ranges)


@pytest.mark.parametrize("weight_bits, activation_bits", [(1, 8), (9, 8), (4, 1), (4, 9)])
def test_impossible_bits_are_refused(model, ranges, weight_bits, activation_bits):
    with pytest.raises(psaq_jax.InputError, match="bits"):
        psaq_jax.quantize(model, ranges, weight_bits, activation_bits)


@pytest.mark.parametrize(
    "pixels, message",
    [
        (np.zeros((0, 32, 32, 3)), "one or more of 32x32x3"),
        (np.zeros((2, 3, 32, 32)), "one or more of 32x32x3"),
        (np.full((2, 32, 32, 3), np.inf), "NaN or infinite"),
    ],
)
def test_bad_calibration_images_are_named(model, pixels, message):
    with pytest.raises(psaq_jax.InputError, match=message):
        psaq_jax.calibrate(model, pixels)


def test_images_that_were_not_normalised_and_empty_ones_are_warned_of(model, caplog):
    noise = np.random.default_rng(0).normal(size=(64, 32, 32, 3)).astype(np.float32)
    calibration.check_pixels(model, noise)
    assert not caplog.text
    calibration.check_pixels(model, np.clip(127.5 + 50 * noise, 0, 255))
    assert "from 0 to 255 where this model's pixels reach from" in caplog.text
    calibration.check_pixels(model, np.zeros_like(noise))
    assert "calibration images are 0 everywhere" in caplog.text


def test_models_are_compared_by_identity(model, ranges):
    for one in (model, psaq_jax.quantize(model, ranges)):
        assert one == one and one != jax.tree.map(lambda x: x, one) and {one: 1}[one]


def test_unknown_recipe_is_named(model):
    with pytest.raises(psaq_jax.InputError, match="known are paper"):
        psaq_jax.calibrate(model, CALIBRATION, recipe="papper")


def test_products_keep_their_precision_on_accelerators(model):
    """Where the default is less: TF32 on GPUs, bfloat16 on TPUs. Ranges are the float model's own."""
    one = meshes.over(jax.local_devices()[:1])
    text = str(jax.make_jaxpr(lambda x: calibration._observe_wave(model, x, "paper", one))(CALIBRATION[None]))
    assert text.count("dot_general[") == text.count("HIGHEST, Precision.HIGHEST") > 0
