"""Recipe "default" on the small reference ViT and on golden checkpoints: errors, hard copies, form, compilations."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

import psaq_jax
from psaq_jax.quantization import preparation
from psaq_jax.quantization.channel_folding import Bits
from psaq_jax.quantization.default import wants_reconstruction
from psaq_jax.quantization.folding import changed
from psaq_jax.quantization.hard_copies import hard_copy
from psaq_jax.quantization.recipes import DefaultRecipe
from psaq_jax.quantization.representation import LogQuantizer, QuantizedKernel, UniformQuantizer
from tests.golden_files import golden, nhwc, reference_vit
from tests.quantization.artefacts import MODULES, random_model
from tests.random_models import VIT, random_pixels

pytestmark = pytest.mark.usefixtures("quickly_compiled")

REFERENCE = golden("paper/vit/reference.npz")
TEST, CALIBRATION = nhwc(REFERENCE["test_images"]), nhwc(REFERENCE["calibration_images"])


@pytest.fixture(scope="module")
def model():
    return reference_vit(2)


@pytest.fixture(scope="module")
def default(model):
    """`quantized` at pairs of bits, each made once."""
    return functools.cache(functools.partial(quantized, model))


def quantized(model, weight_bits, activation_bits, images=CALIBRATION, recipe="default", options=None):
    ranges = psaq_jax.calibrate(model, CALIBRATION, recipe=recipe)
    return psaq_jax.quantize(model, ranges, weight_bits, activation_bits, recipe=recipe, images=images, options=options)


def error(model, q):
    return float(np.mean(np.square(q(TEST) - model(TEST))))


@pytest.mark.parametrize("weight_bits, activation_bits", [(8, 8), (4, 8), (6, 6), (4, 4)])
def test_is_closer_to_float_than_the_paper(model, default, weight_bits, activation_bits):
    ours = default(weight_bits, activation_bits)
    paper = quantized(model, weight_bits, activation_bits, recipe="paper")
    assert error(model, ours) < 0.8 * error(model, paper)


def test_loses_no_more_on_a_hard_copy():
    model = reference_vit(3)
    copy = hard_copy(model)
    original, hard = error(model, quantized(model, 6, 6)), error(copy, quantized(copy, 6, 6))
    assert hard < 1.5 * original  # other last bits, other roundings
    assert error(copy, quantized(copy, 6, 6, recipe="paper")) > 5 * original


def test_nor_there_with_activations_in_floating_point(model):
    """Kernels' rows differ as much as the channels that they take, and folding evens them out."""
    copy = hard_copy(model)
    assert error(copy, quantized(copy, 4, None)) < 1.5 * error(model, quantized(model, 4, None))


def test_is_integer_codes_and_small_site_quantizers(model):
    q = quantized(model, 4, 6)
    kernels = [x for x in jax.tree.leaves(q.params, is_leaf=_is_kernel) if _is_kernel(x)]
    assert len(kernels) == 2 + 4 * model.module.depth
    eights = ("patch_embedding", "head")
    for name in eights:
        assert np.abs(q.params[name]["kernel"].codes).max() > 7
    for kernel in filter(_is_kernel, jax.tree.leaves(q.params["block_0"], is_leaf=_is_kernel)):
        assert kernel.codes.dtype == np.int8 and -8 <= kernel.codes.min() <= kernel.codes.max() <= 7
    assert list(q.sites) == list(psaq_jax.calibrate(model, CALIBRATION, recipe="default"))
    for name, quantizer in q.sites.items():
        assert isinstance(quantizer, UniformQuantizer | LogQuantizer)
        assert all(np.shape(x) == () and x.dtype == np.float32 for x in jax.tree.leaves(quantizer)), name
        assert quantizer.bits == (8 if name in ("input", "head_input") else 6)
    assert q.options == DefaultRecipe()


def _is_kernel(x):
    return isinstance(x, QuantizedKernel)


def test_zero_lies_in_every_range(default):
    for name, quantizer in default(8, 8).sites.items():
        assert quantizer(np.zeros(1, np.float32))[0] == 0, name


# {ingredient: (what it is without, what then differs, what it leaves as it was)}, in a model of one block, at 5 bits
# and not in other bases, where all kernels differ.
KERNEL, BLOCK = "patch_embedding/kernel/", "block_0/"
QKV, NORMS = BLOCK + "attention/qkv/", (BLOCK + "norm1/", BLOCK + "norm2/")
ROUNDED = ("input", *NORMS)  # what comes before any rounding, or by the float model
EMBEDDED = ("input", "patch_embedding/", "class_token", "position_embedding")
ATTENDED = tuple(BLOCK + f"attention/{name}" for name in ("query", "key", "value"))
SWITCHES = {
    "plain_grounds": (False, (KERNEL, *NORMS), ("input",)),
    "close_ups": (False, (KERNEL + "codes",), ROUNDED),
    "first_last_8bit": (False, ("input", KERNEL, "head_input", "head/kernel/"), NORMS),
    "rotate": (False, ("class_token", "position_embedding", KERNEL, "norm/scale"), ("input",)),
    "fold_norms": (False, (*NORMS, "norm/scale", QKV + "kernel/"), EMBEDDED),
    "fold_attention": (False, (QKV + "kernel/scale", *ATTENDED), (*EMBEDDED, *NORMS, BLOCK + "norm1_output")),
    "folding_strength": (0.0, (*NORMS, QKV + "kernel/"), EMBEDDED),
    "search_ranges": (False, (*NORMS, BLOCK + "norm1_output", *ATTENDED), EMBEDDED),
    "token_importance": (False, (BLOCK + "norm1_output",), (*EMBEDDED, *NORMS)),
    "coverage": (((1.0, 1.0),), (*NORMS, BLOCK + "norm1_output"), EMBEDDED),
    "softmax": ("uniform", (BLOCK + "attention/attention_probabilities",), (*EMBEDDED, *NORMS, QKV, *ATTENDED)),
    "gelu": ("uniform", (BLOCK + "mlp/activation_output",), (*EMBEDDED, *NORMS, BLOCK + "attention/")),
    "gptq": (False, (KERNEL + "codes",), ROUNDED),
    "coordinate_descent": (False, (KERNEL + "codes", KERNEL + "scale"), ROUNDED),
    "two_sided": (False, (QKV + "kernel/codes",), (*EMBEDDED, *NORMS, QKV + "kernel/scale", *ATTENDED)),
    "search_weight_scales": (False, (QKV + "kernel/scale",), ROUNDED),
    "bias_correction": (False, ("patch_embedding/bias",), (*ROUNDED, KERNEL)),
}


def small(*bits, depth=1, **switch):
    model = random_model(VIT.clone(depth=depth))
    heavy_tailed = model.params["block_0"]["mlp"]["dense1"]["kernel"].at[:, 0].multiply(20)  # for GELU's shifted grid
    model = model.replace(params=changed(model.params, {"block_0/mlp/dense1/kernel": heavy_tailed}))
    options = DefaultRecipe(bases=False, **switch)
    q = psaq_jax.quantize(model, None, *bits, "default", random_pixels(), options)
    assert q.options == options
    return q


def one_block(**switch):
    """{path of a parameter, or of a site's quantizer: its value} of the small model at 5 bits."""
    q = small(5, 5, **switch)
    leaves, _ = jax.tree.flatten_with_path(q.params)
    values = {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(x) for path, x in leaves}
    return values | {name: (type(site), *map(float, jax.tree.leaves(site))) for name, site in q.sites.items()}


@pytest.fixture(scope="module")
def whole():
    return one_block()


@pytest.mark.parametrize("name", SWITCHES)
def test_every_ingredient_can_be_switched_off(whole, name):
    value, differ, same = SWITCHES[name]
    found = one_block(**{name: value})
    assert list(found) == list(whole)
    moved = [path for path, x in found.items() if not np.array_equal(x, whole[path])]
    for places, expected in ((differ, True), (same, False)):
        for place in places:
            assert any(path.startswith(place) for path in found), place
            assert any(path.startswith(place) for path in moved) == expected, place


def test_close_ups_count_where_kernels_are_rounded_alone():
    """Rounded to nearest, with the largest weights for scales, kernels need no moments: close-ups move nothing."""
    nearest = dict.fromkeys(("gptq", "coordinate_descent", "two_sided", "search_weight_scales"), False)
    found = [one_block(**nearest, close_ups=on) for on in (True, False)]
    assert list(found[0]) == list(found[1])
    for path, value in found[0].items():
        np.testing.assert_array_equal(value, found[1][path], err_msg=path)


@pytest.mark.parametrize("bits, counts", [((8, 8), False), ((7, 8), True), ((4, 4), True)])
def test_both_sides_count_below_8_bits(bits, counts):
    found = [small(*bits, depth=2, two_sided=on, reconstruct=False) for on in (True, False)]
    for block in ("block_0", "block_1"):
        kernels = (filter(_is_kernel, jax.tree.leaves(q.params[block], is_leaf=_is_kernel)) for q in found)
        for both_sides, inputs_alone in zip(*kernels, strict=True):
            assert (both_sides.codes != inputs_alone.codes).any() == counts, block
    embeddings = (q.params["patch_embedding"]["kernel"].codes for q in found)
    np.testing.assert_array_equal(*embeddings)  # 8 bits


def test_activations_are_folded_at_8_bits():
    def scales(*bits, **switch):
        params = small(*bits, depth=2, **switch).params
        return [name for name in params if name.startswith("block_") and "activation_scale" in params[name]["mlp"]]

    assert scales(4, 8) == ["block_0", "block_1"]
    assert not scales(4, 8, fold_activations=False) and not scales(8, 6)


@pytest.mark.parametrize(
    "weights, activations, wanted",
    [(4, 8, False), (3, 8, True), (8, 4, True), (3, 3, True), (4, None, False), (3, None, True), (8, 8, False)],
)
def test_blocks_are_reconstructed_where_few_bits_are_left(weights, activations, wanted):
    bits = Bits({"mlp/dense1": 8, "mlp/dense2": weights}, activations)
    assert wants_reconstruction(bits, DefaultRecipe()) == wanted
    assert wants_reconstruction(bits, DefaultRecipe(reconstruct=True))
    assert not wants_reconstruction(bits, DefaultRecipe(reconstruct=False))
    assert wants_reconstruction(bits, DefaultRecipe(learn_rounding=True))
    assert wants_reconstruction(bits, DefaultRecipe(learn_scales=True))
    assert not wants_reconstruction(bits, DefaultRecipe(reconstruct=False, learn_rounding=True))


def test_works_with_ranges_alone(model):
    assert error(model, quantized(model, 8, 8, images=None)) < 1e-2


def test_images_make_ranges_unnecessary(model, default):
    with_ranges, q = default(8, 8), psaq_jax.quantize(model, None, 8, 8, recipe="default", images=CALIBRATION)
    np.testing.assert_array_equal(q(TEST), with_ranges(TEST))
    with pytest.raises(psaq_jax.InputError, match="ranges are NoneType, expected what calibrate returns"):
        psaq_jax.quantize(model, None, 8, 8, recipe="default")


@pytest.mark.parametrize("name", ["distilled", "dinov2", "swin"])
def test_serves_every_family(name):
    """With two special tokens; with registers, SwiGLU and LayerScales; in windows that are padded."""
    model, images = random_model(MODULES[name]), random_pixels(MODULES[name], 6)
    options = DefaultRecipe(plain_grounds=False)  # the same noise is calibrated on and tested
    q = psaq_jax.quantize(model, None, 8, 8, recipe="default", images=images, options=options)
    difference = np.abs(q(images) - model(images)).max()
    assert difference < 0.05 * np.abs(model(images)).max()


def test_other_images_and_bits_compile_nothing(model, default, compilations):
    """Once what the recipe does at some bits alone has run: at 8 bits, below them, and at 4 reconstruction."""
    default(8, 8)
    quantized(model, 3, 7)
    with compilations() as count:
        quantized(model, 4, 6, images=CALIBRATION[::-1].copy())
    assert count() == 0


def test_a_preparation_serves_all_bits(model, monkeypatch):
    """With the same bits as without one, and what goes back through the whole model is computed once."""
    alone = [quantized(model, *bits, options=DefaultRecipe(reconstruct=False)) for bits in ((4, 8), (3, 7))]
    calls, options = [], DefaultRecipe(reconstruct=False)
    for name in ("token_importance", "block_gradients"):
        real = getattr(preparation, name)
        monkeypatch.setattr(preparation, name, lambda *given, real=real: calls.append(real) or real(*given))
    prepared = preparation.prepare(model, CALIBRATION, options)
    for q in alone:
        same = quantized(model, q.weight_bits, q.activation_bits, images=prepared, options=options)
        jax.tree.map(np.testing.assert_array_equal, (same.params, same.sites), (q.params, q.sites))
    assert len(calls) == 2
    for other in ({"model": model.replace(labels=model.labels)}, {"options": DefaultRecipe()}):
        given = {"model": model, "images": prepared, "options": options} | other
        with pytest.raises(psaq_jax.InputError, match="images are a preparation of another model or options"):
            quantized(given.pop("model"), 4, 8, **given)


def test_refuses_images_of_another_shape(model):
    with pytest.raises(psaq_jax.InputError, match="calibration images are"):
        quantized(model, 8, 8, images=CALIBRATION[:, :-1])


@pytest.mark.parametrize("field, value", [("softmax", "log3"), ("folding_strength", 2.0), ("damping", 0.0)])
def test_refuses_impossible_options(field, value):
    with pytest.raises(psaq_jax.InputError, match=f"options.{field} is"):
        dataclasses.replace(DefaultRecipe(), **{field: value})
