"""Gradients at the outputs of a block's layers, against derivatives of the whole model."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import psaq_jax
from psaq_jax.models.model import exact_products
from psaq_jax.quantization import streaming
from psaq_jax.quantization.channel_folding import Bits, fold
from psaq_jax.quantization.output_moments import COMBINATIONS, block_gradients, output_moments
from psaq_jax.quantization.recipes import DefaultRecipe
from psaq_jax.quantization.segments import chain, parts_of
from tests.golden_files import GOLDEN

pytestmark = pytest.mark.usefixtures("quickly_compiled")


def load(name, images=5):
    model = psaq_jax.load_model(GOLDEN / name)
    return model, np.random.default_rng(0).normal(size=(images, *model.image_shape)).astype(np.float32)


def inputs_of(model, images, wanted):
    """(the link of that path, its inputs) in floating point."""
    x = images
    for link in chain(model.module, model.params, model.image_shape):
        if link.path == wanted:
            return link, x
        x = streaming.propagate(link.segment, link.parameters(model.params), {}, x)
    raise AssertionError(wanted)


def jacobians(model, images, layers):
    """{layer: of the centred logits by a Dense layer's outputs, by the whole model: [b, classes, rows, o]}."""
    shapes = {}

    def logits(offset, x):
        def interceptor(next_fun, args, kwargs, context):
            y = next_fun(*args, **kwargs)
            layer = "/".join(context.module.path)
            if isinstance(context.module, nn.Dense) and layer in layers:
                shapes[layer] = y.shape
                return y + offset[layer] if layer in offset else y
            return y

        with exact_products(model.module.dtype), nn.intercept_methods(interceptor):
            found = model.module.apply({"params": model.params}, x)
        return found - found.mean(-1, keepdims=True)

    jax.eval_shape(logits, {}, images[:1])
    offsets = {layer: np.zeros(shape, np.float32) for layer, shape in shapes.items()}
    derivatives = jax.jit(jax.jacobian(lambda offset, x: logits(offset, x)[0]))
    found = [derivatives(offsets, x) for x in images[:, None]]
    rows = {layer: (len(images), -1, int(np.prod(shape[:-1])), shape[-1]) for layer, shape in shapes.items()}
    return {layer: np.stack([one[layer] for one in found]).reshape(shape) for layer, shape in rows.items()}


@pytest.mark.parametrize(("name", "block"), [
    ("paper/vit", "block_1"), ("checkpoints/hf_dinov2_swiglu", "block_1"), ("more/hf_swin_padded", "stage_0/block_1"),
])  # fmt: skip
def test_are_those_of_the_logits_by_the_layers_outputs(name, block):
    model, images = load(name, images=2)
    link, x = inputs_of(model, images, block)
    gradients = block_gradients(model, images)[link.full_name("residual2")]
    found = output_moments(link.segment, link.parameters(model.params), x, gradients)
    assert set(found) == set(parts_of(link.segment, link.parameters(model.params), x).layers)
    key = jax.random.fold_in(jax.random.key(0), 0)
    of_logits = jacobians(model, images, [link.full_name(layer) for layer in found])
    for layer, moments in found.items():
        derivatives = np.concatenate([of_logits[link.full_name(layer)]] * COMBINATIONS)
        combinations = jax.random.normal(key, derivatives.shape[:2])
        own = np.einsum("bk,bkro->bro", combinations, derivatives)
        expected = np.einsum("bro,brp->op", own, own)
        np.testing.assert_allclose(moments, expected, atol=2e-4 * expected.max(), err_msg=layer)


def test_a_short_last_batch_counts_no_image_twice(monkeypatch):
    monkeypatch.setattr(streaming, "BATCH", 4)  # of ten gradients the last two are filled up by two more
    model, images = load("paper/vit", images=5)
    link, x = inputs_of(model, images, "block_0")
    gradients = block_gradients(model, images)[link.full_name("residual2")]
    assert gradients.shape == (COMBINATIONS * 5, *x.shape[1:])
    params = link.parameters(model.params)
    whole = output_moments(link.segment, params, x, gradients)
    single = [output_moments(link.segment, params, x[[i]], gradients[i::5]) for i in range(5)]
    for layer, found in whole.items():
        np.testing.assert_allclose(found, sum(s[layer] for s in single), rtol=2e-4, atol=1e-6 * np.abs(found).max())


def test_half_precision_finds_about_the_same():
    model, images = load("paper/vit")
    link, x = inputs_of(model, images, "block_1")

    def found(model, x):
        half = next(k for k in chain(model.module, model.params, model.image_shape) if k.path == link.path)
        gradients = block_gradients(model, images)[link.full_name("residual2")]
        return output_moments(half.segment, half.parameters(model.params), x, gradients)

    whole, half = found(model, x), found(model.with_dtype(jnp.bfloat16), x.astype(jnp.bfloat16))
    for layer, moments in half.items():
        assert moments.dtype == jnp.float32
        np.testing.assert_allclose(moments, whole[layer], atol=0.05 * np.abs(whole[layer]).max(), err_msg=layer)


def test_folding_leaves_the_gradients_at_the_blocks_outputs_and_scales_those_inside():
    model, images = load("paper/vit")
    link, x = inputs_of(model, images, "block_1")
    params = link.parameters(model.params)
    bits = Bits(dict.fromkeys(parts_of(link.segment, params, x).layers, 4), 4)
    folded = fold(link.segment, parts_of(link.segment, params, x), params, x, bits, DefaultRecipe())
    gradients = block_gradients(model, images)[link.full_name("residual2")]
    before, after = (output_moments(link.segment, p, x, gradients) for p in (params, folded))
    for layer in ("attention/projection", "mlp/dense1", "mlp/dense2"):  # their outputs are as they were
        np.testing.assert_allclose(after[layer], before[layer], rtol=1e-3, atol=1e-4 * np.abs(before[layer]).max())
    qkv = [np.asarray(m["attention/qkv"]) for m in (before, after)]
    factors = np.sqrt(np.diag(qkv[1]) / np.diag(qkv[0]))
    assert factors.max() > 1.2 * factors.min()  # query and key are scaled against each other
    np.testing.assert_allclose(qkv[1], qkv[0] * np.outer(factors, factors), atol=1e-3 * np.abs(qkv[1]).max())
