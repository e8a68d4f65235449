"""How much each token counts in the search of ranges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import psaq_jax
from psaq_jax.quantization import clipping, importance, streaming
from psaq_jax.quantization.hard_copies import hard_copy
from psaq_jax.quantization.importance import AS_THEY_ARE, LEAST, by_batches, token_importance
from psaq_jax.quantization.recipes import site_filter
from psaq_jax.quantization.segments import chain
from psaq_jax.sites import apply_with_tap, record
from tests.export.small_models import random_model
from tests.golden_files import GOLDEN, golden, nhwc, reference_vit
from tests.random_models import VIT

pytestmark = pytest.mark.usefixtures("quickly_compiled")

IMAGES = nhwc(golden("paper/vit/reference.npz")["calibration_images"])[:6]


@pytest.fixture(scope="module")
def model():
    return reference_vit(2)


@pytest.mark.parametrize("name", ["paper/vit", "checkpoints/hf_dinov2_swiglu", "more/hf_swin_padded"])
def test_rows_are_those_of_each_site_and_count_1_on_average(name):
    model = psaq_jax.load_model(GOLDEN / name)
    images = np.random.default_rng(0).normal(size=(11, *model.image_shape)).astype(np.float32)
    found = token_importance(model, images)
    _, sites = record(model.module, model.params, images[:1], "*")
    wanted = site_filter("default")
    assert set(found) == {name for name in sites if wanted(name) and name != "input"}
    for name, rows in found.items():
        kind = name.rpartition("/")[2]
        heads = kind in ("query", "key", "value", "attention_output")
        one = sites[name]
        assert rows.shape == (11, one.size // one.shape[-1] // (one.shape[1] if heads else 1)), name
        assert rows.dtype == np.float32 and rows.min() >= LEAST * 0.999
        np.testing.assert_allclose(rows.mean(1), 1, rtol=1e-4, err_msg=name)


def test_every_batch_has_a_key_of_its_own_that_follows_from_the_seed(model):
    images, keys = np.random.default_rng(0).normal(size=(11, *model.image_shape)).astype(np.float32), []

    def corners(_, part, key):
        keys.append(tuple(jax.random.key_data(key).tolist()))
        return {"corner": part[:, 0, 0]}

    for seed in (0, 1, 0):
        np.testing.assert_array_equal(by_batches(corners, model, images, seed)["corner"], images[:, 0, 0])
    assert keys[4:] == keys[:2] and len(set(keys)) == 4  # two batches a seed


@pytest.mark.parametrize("site", ["norm1_output", "attention/query", "mlp/activation_output"])
def test_a_channel_counts_by_its_own_spread_in_its_own_image(site):
    generator = np.random.default_rng(0)
    x, gradient = generator.normal(3, 1, (2, 4, 2, 5, 3)).astype(np.float32)  # b, h, n, d
    x *= np.float32([1, 2, 4, 8]).reshape(4, 1, 1, 1)  # images of several contrasts

    def by_row(y):
        return y.transpose(0, 2, 1, 3).reshape(4, 5, 6)

    own = by_row(gradient) * (1 if site.endswith("activation_output") else by_row(x).std(1, keepdims=True))
    square = np.square(own).sum(-1)
    arrays = (x, gradient) if site.endswith("query") else (by_row(x), by_row(gradient))
    found = importance._by_rows(f"block_0/{site}", *arrays, 4)
    np.testing.assert_allclose(found, 0.01 + 0.99 * square / square.mean(1, keepdims=True), rtol=1e-5)


def test_one_logit_alone_counts_as_it_is():
    model = random_model(VIT.clone(classes=1))
    images = np.random.default_rng(0).normal(size=(3, *model.image_shape)).astype(np.float32)
    assert all(rows.std() > 0.01 for name, rows in token_importance(model, images).items() if name != "head_input")


def test_is_the_squared_gradient_of_the_logits(model):
    """On average over random combinations of the logits, against all their derivatives, by themselves."""
    site = "block_1/mlp/activation_output"
    assert site.rpartition("/")[2] in AS_THEY_ARE
    images = IMAGES[:2]
    found = token_importance(model, np.repeat(images, 200, axis=0))[site].reshape(2, 200, -1).mean(1)
    _, sites = record(model.module, model.params, images, site)

    def logits(offset):
        return apply_with_tap(model.module, model.params, images, lambda name, y: y + offset if name == site else y)

    derivatives = jax.jacobian(lambda offset: (x := logits(offset)) - x.mean(-1, keepdims=True))
    own = np.stack([derivatives(jnp.zeros(sites[site].shape))[i, :, i] for i in range(2)])  # [b, classes, n, c]
    square = np.square(own).sum((1, 3))
    expected = LEAST + (1 - LEAST) * square / square.mean(1, keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=0.25, atol=0.02)  # 200 draws: a tenth of the value, or so


def test_what_shifts_all_logits_alike_counts_for_nothing(model):
    """It changes no prediction. Here it is ten times what tells the classes apart."""
    head = model.params["head"]
    together = 10 * np.random.default_rng(0).normal(size=(len(head["kernel"]), 1)).astype(np.float32)
    shifted = model.replace(params={**model.params, "head": head | {"kernel": head["kernel"] + together}})
    found = token_importance(shifted, IMAGES)
    for name, rows in token_importance(model, IMAGES).items():
        np.testing.assert_allclose(found[name], rows, rtol=0.01, atol=1e-3, err_msg=name)


def test_patches_without_a_say_count_least(model):
    """The head takes the class token alone: what the last block's MLP makes of patches reaches no logit."""
    last = model.module.depth - 1
    found = token_importance(model, IMAGES)
    for site in ("norm2_output", "mlp/activation_output"):
        rows = found[f"block_{last}/{site}"]
        np.testing.assert_allclose(rows[:, 1:], LEAST, rtol=1e-5)
        assert (rows[:, 0] > rows.shape[1] * 0.9).all()


def test_outlier_channels_change_nothing(model):
    original, copy = token_importance(model, IMAGES), token_importance(hard_copy(model), IMAGES)
    for name, rows in original.items():
        np.testing.assert_allclose(copy[name], rows, rtol=0.02, atol=0.01, err_msg=name)


@pytest.mark.parametrize("site", ["norm1_output", "attention/query", "attention/attention_probabilities"])
def test_histograms_count_the_tokens_that_matter(model, site):
    """All weight on one token: the histogram is that of its values alone, heads in their places."""
    link = next(link for link in chain(model.module, model.params, model.image_shape) if link.path)
    params, heads, token = link.parameters(model.params), model.module.heads, 3
    x = np.random.default_rng(0).normal(size=(6, 5, model.module.width)).astype(np.float32)
    seen = streaming.record(link.segment, params, {}, x).sites
    alone = np.broadcast_to((np.arange(5) == token).astype(np.float32), (6, 5))
    if site.endswith("probabilities"):
        ground, alone = None, np.tile(alone, heads)
        values = -np.log2(np.asarray(seen[site])[:, :, token])  # [b, h, m]
        weights, reach = np.square(seen["attention/value"]).sum(-1), (0, clipping.OCTAVES)
    else:
        ground, reach = (np.float32(-9), np.float32(9), np.ones(())), (-9, 9)
        values = np.asarray(seen[site])
        values = values[:, :, token] if site.endswith("query") else values[:, token]
        weights = np.ones_like(values)
    found = streaming.tensor_histograms(link.segment, params, x, {site: ground}, {site: alone})[site]
    expected, _ = np.histogram(values, streaming.TENSOR_BINS, reach, weights=weights)
    # Values on an edge between bins may fall to either side.
    np.testing.assert_allclose(np.cumsum(found), np.cumsum(expected), atol=0.01 * expected.sum())
    np.testing.assert_allclose(found.sum(), expected.sum(), rtol=1e-5)


def test_all_count_alike_where_no_logit_moves(model):
    constant = model.replace(params={**model.params, "head": jax.tree.map(jnp.zeros_like, model.params["head"])})
    for rows in token_importance(constant, IMAGES).values():
        np.testing.assert_array_equal(rows, 1)


def test_histograms_count_beyond_float32s_whole_numbers():
    """Image by image: added up in one, a count of 2^24 grows no further."""
    y, high = jnp.full((3, 2**12, 2**11), 0.5), jnp.float32(1)
    found = streaming._add_tensor(jnp.zeros(streaming.TENSOR_BINS), y, jnp.ones(3), -high, high, jnp.ones(2**11), False)
    assert float(found.sum()) == float(found.max()) == 3 * 2**23
