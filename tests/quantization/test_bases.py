"""Other bases leave the function as it was, and bring down what noise in their channels costs."""

import dataclasses

import jax
import numpy as np
import pytest

import psaq_jax
from psaq_jax.quantization import bases, importance
from psaq_jax.quantization.importance import site_gradients
from psaq_jax.quantization.preparation import as_rounded, prepare
from psaq_jax.quantization.recipes import DefaultRecipe
from tests.golden_files import GOLDEN
from tests.quantization.artefacts import random_model, random_pixels
from tests.quick_recipe import QUICK

pytestmark = pytest.mark.usefixtures("quickly_compiled")

HEADED = ("query", "key", "value", "attention_output")
MODELS = ("hf_deit_distilled", "hf_dinov2_registers", "hf_dinov2_swiglu", "hf_swin")


def images(model, count=5):
    return np.random.default_rng(0).normal(size=(count, *model.image_shape)).astype(np.float32)


def noise(moments):
    return sum(float(np.einsum("hii,hii->", *each)) for each in moments.values())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("rotate", [True, False])
def test_a_model_in_other_bases_is_the_same_function(name, rotate):
    model = psaq_jax.load_model(GOLDEN / "checkpoints" / name)
    pixels, options = images(model), dataclasses.replace(QUICK, rotate=rotate, bases=True)
    found, expected = as_rounded(model, pixels, options, None), np.asarray(model(pixels))
    np.testing.assert_allclose(found(pixels), expected, atol=2e-5 * np.abs(expected).max())
    flat = ["stage_0/block_0" if name == "hf_swin" else "block_0", "attention", "qkv", "kernel"]
    before, after = (jax.tree_util.tree_leaves_with_path(m.params) for m in (model, found))
    changed = [jax.tree_util.keystr(p, simple=True, separator="/") for (p, x), (_, y) in zip(before, after, strict=True)
               if not np.array_equal(x, y)]  # fmt: skip
    assert "/".join(flat) in changed
    assert any(path.endswith("mlp/dense1/kernel") for path in changed) == rotate, "the stream is turned where it may be"


def test_bases_bring_the_noise_down():
    model = random_model()
    pixels, options = random_pixels(count=16), DefaultRecipe()
    before = bases.site_moments(model, pixels, 0)
    assert noise(bases.site_moments(bases.in_bases(model, pixels, options), pixels, 0)) < 0.8 * noise(before)


def test_moments_are_of_every_row_of_every_image_once():
    """Of three images, each twice, in batches of four: the last is padded."""
    model, pixels = random_model(), random_pixels(count=3)
    one_by_one = np.concatenate([pixels] * bases.COMBINATIONS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importance, "BATCH", 4)
        found = bases.site_moments(model, pixels, 3)
    rows = {name: ([], []) for name in ("block_0/norm2_output", "block_0/attention/query", "block_0/attention/value")}
    for number, part in enumerate(([0, 1, 2, 3], [4, 5, 5, 5])):
        key = jax.random.fold_in(jax.random.key(3), number)
        given = site_gradients(model, one_by_one[part], key, rows.__contains__)
        for name, kept in rows.items():
            for into, of in zip(kept, given, strict=True):
                y = np.asarray(of[name][: len(set(part))], np.float64)
                y = y[:, None] if y.ndim == 3 else y
                into.append(y.transpose(1, 0, 2, 3).reshape(y.shape[1], -1, y.shape[-1]))
    for name, (gradients, tensors) in rows.items():
        g, x = np.concatenate(gradients, 1), np.concatenate(tensors, 1)
        x = x if name.endswith("query") else x - x.mean(1, keepdims=True)
        for y, expected in ((found[name].spread, x.transpose(0, 2, 1) @ x / x.shape[1]),
                            (found[name].cost, g.transpose(0, 2, 1) @ g)):  # fmt: skip
            np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def positive(generator, heads, width):
    x = generator.normal(size=(heads, 3 * width, width)) * np.exp(generator.normal(size=width))
    return x.transpose(0, 2, 1) @ x


@pytest.mark.parametrize("seed", range(4))
def test_a_turn_is_the_best_about_the_vector_of_ones(seed):
    """Of three channels there is one angle to choose."""
    generator = np.random.default_rng(seed)
    spread, cost = positive(generator, 4, 3), positive(generator, 4, 3)
    found = bases.best_turn(spread, cost)
    np.testing.assert_allclose(found @ found.T, np.eye(3), atol=1e-5)
    np.testing.assert_allclose(found @ np.ones(3), np.ones(3), atol=1e-5)
    mixed = [
        (1 - bases.DAMPING) * y + bases.DAMPING * np.trace(y, axis1=1, axis2=2)[:, None, None] * np.eye(3) / 3
        for y in (spread, cost)
    ]

    def left(turn):
        return float(np.einsum("sii,sii->", *(turn.T @ y @ turn for y in mixed)))

    axes = np.linalg.qr(np.c_[np.ones(3), np.eye(3)[:, :2]])[0]
    every = []
    for angle in np.linspace(0, 2 * np.pi, 721):
        c, s = np.cos(angle), np.sin(angle)
        every.append(left(axes @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) @ axes.T))
    assert left(found) < min(every) + 0.01 * (max(every) - min(every))


def test_a_heads_basis_makes_both_matrices_the_same(monkeypatch):
    monkeypatch.setattr(bases, "DAMPING", 0.0)
    generator = np.random.default_rng(0)
    spread, cost, kept = (positive(generator, 2, 6) for _ in range(3))
    found = bases.head_bases(spread, cost, kept, generator)
    undone = np.linalg.inv(found)
    there = found @ spread @ found.transpose(0, 2, 1), undone.transpose(0, 2, 1) @ cost @ undone
    first, second = (y / np.trace(y, axis1=1, axis2=2)[:, None, None] for y in there)
    np.testing.assert_allclose(first, second, atol=1e-6)  # of a trace of one
    turned = found @ kept @ found.transpose(0, 2, 1)
    np.testing.assert_allclose(np.trace(turned, axis1=1, axis2=2), np.trace(kept, axis1=1, axis2=2), rtol=1e-9)


def test_a_heads_basis_follows_channels_that_are_scaled():
    """As in a function-preserving copy, which comes to the original's queries and values."""
    generator = np.random.default_rng(0)
    spread, cost = positive(generator, 2, 6), positive(generator, 2, 6)
    factor = 4.0 ** generator.integers(-3, 4, 6)
    scaled = spread * factor * factor[:, None], cost / factor / factor[:, None]
    original = bases.head_bases(spread, cost, spread, np.random.default_rng(1))
    copy = bases.head_bases(*scaled, spread * factor * factor[:, None], np.random.default_rng(1)) * factor
    for x, y in zip(original, copy, strict=True):
        np.testing.assert_allclose(x / np.linalg.norm(x), y / np.linalg.norm(y), atol=1e-9)


def test_channels_that_nothing_excites_stay_finite():
    spread, cost = np.zeros((1, 4, 4)), np.zeros((1, 4, 4))
    spread[0, 0, 0] = cost[0, 1, 1] = 1
    found = bases.head_bases(spread, cost, spread, np.random.default_rng(0))
    assert np.isfinite(found).all() and np.isfinite(np.linalg.inv(found)).all()
    assert np.isfinite(bases.head_bases(0 * spread, 0 * cost, 0 * spread, np.random.default_rng(0))).all()


@pytest.mark.parametrize("given, bits, expected", [
    (None, 4, True), (None, 3, True), (None, 5, False), (None, 8, False), (None, None, False),
    (True, 8, True), (True, None, True), (False, 4, False),
])  # fmt: skip
def test_they_are_for_few_bits_of_activations(given, bits, expected):
    model, pixels = random_model(), random_pixels()
    prepared = prepare(model, pixels, dataclasses.replace(QUICK, bases=given))
    assert prepared.options.wants_bases(bits) == expected
    assert (prepared.at(bits) is not prepared) == expected == (prepared.at(bits).of_more_bits is prepared)
    assert prepared.at(bits).views is prepared.views


def test_recipe_default_rounds_in_them():
    """And its other bits as before."""
    model, pixels = random_model(), random_pixels(count=4)
    codes = {
        (bits, on): psaq_jax.quantize(model, None, 8, bits, "default", pixels, dataclasses.replace(QUICK, bases=on))
        .params["block_0"]["attention"]["qkv"]["kernel"].codes
        for bits in (4, 8) for on in (None, False)
    }  # fmt: skip
    assert (codes[4, None] != codes[4, False]).any() and (codes[8, None] == codes[8, False]).all()
