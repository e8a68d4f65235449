"""What recipe "default" does between its ingredients: its seed, biases, costs, ranges, damping and moments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from psaq_jax.quantization import default, streaming
from psaq_jax.quantization.preparation import prepare
from psaq_jax.quantization.recipes import DefaultRecipe
from psaq_jax.quantization.segments import chain, parts_of
from tests.quantization.artefacts import random_model
from tests.random_models import random_pixels

pytestmark = pytest.mark.usefixtures("quickly_compiled")


@pytest.mark.parametrize("part", ["rotated", "views", "close_ups", "importance", "gradients"])
def test_all_that_is_random_follows_from_the_seed(part):
    """Each part on its own: of the same model and views where these are not what is asked for."""
    model, switches = random_model(), {"rotated": "rotate", "views": "plain_grounds", "close_ups": "close_ups"}
    on = {switch: switch == switches.get(part) for switch in switches.values()}
    prepared = (prepare(model, random_pixels(), DefaultRecipe(seed=seed, **on)) for seed in (0, 0, 1))
    one, same, other = (jax.tree.leaves(getattr(each, part)) for each in prepared)
    assert all(np.array_equal(x, y) for x, y in zip(one, same, strict=True))
    assert any((x != y).any() for x, y in zip(one, other, strict=True))


def test_corrected_biases_give_the_float_mean_of_quantized_inputs():
    """Which is another than the float inputs' mean."""
    generator = np.random.default_rng(0)
    x, kernel, bias = (generator.normal(size=shape).astype(np.float32) for shape in ((50, 6), (6, 4), (4,)))
    quantized, rounded = np.round(x) + 0.25, np.round(kernel)
    found = default.corrected(bias, kernel, x.mean(0), rounded, quantized.mean(0))
    np.testing.assert_allclose((quantized @ rounded + found).mean(0), (x @ kernel + bias).mean(0), atol=1e-5)


def moments(generator, channels):
    low, mean = -generator.uniform(1, 2, channels), generator.uniform(-1, 1, channels)
    return streaming.Moments(low, -low, mean, generator.uniform(1, 2, channels))


def test_channels_cost_what_the_next_product_makes_of_their_errors():
    generator = np.random.default_rng(0)
    layers = {"attention/qkv": (6, 18), "attention/projection": (6, 6), "mlp/dense1": (6, 8), "patch_embedding": (9, 6)}
    kernels = {layer: generator.normal(size=shape) for layer, shape in layers.items()}
    takes = {
        "norm1_output": "attention/qkv", "attention/value": "attention/projection",
        "attention/attention_output": "attention/projection", "norm2_output": "mlp/dense1",
    }  # fmt: skip
    names = (*takes, "attention/query", "attention/key")
    found = {name: moments(generator, 6) for name in names} | {"input": moments(generator, 3)}

    def cost(name):
        return default.channel_costs(name, kernels, found)

    for name, layer in takes.items():
        np.testing.assert_allclose(cost(name), np.square(kernels[layer]).sum(1), rtol=1e-5, err_msg=name)
    np.testing.assert_array_equal(cost("attention/query"), found["attention/key"].square)
    np.testing.assert_array_equal(cost("attention/key"), found["attention/query"].square)
    np.testing.assert_array_equal(cost("input"), np.ones(3))
    grounds = default.tensor_grounds(found, kernels, (0, 1))
    np.testing.assert_allclose(grounds["norm1_output"][2], cost("norm1_output"), rtol=1e-5)


@pytest.mark.parametrize(
    "name, seen, expected",
    [
        ("input", (-1, 1), (-2, 3)), ("input", (-4, 5), (-4, 5)), ("input", (-4, 1), (-4, 3)),
        ("norm1_output", (-1, 1), (-1, 1)), ("norm1_output", (1, 5), (0, 5)), ("norm1_output", (-5, -1), (-5, 0)),
    ],
)  # fmt: skip
def test_grounds_hold_zero_and_the_inputs_all_pixels(name, seen, expected):
    low, high = (np.float32([end, end / 2]) for end in seen)
    of_site = streaming.Moments(np.minimum(low, high), np.maximum(low, high), np.zeros(2), np.ones(2))
    assert default.tensor_grounds({name: of_site}, {}, (-2.0, 3.0))[name][:2] == expected


@pytest.mark.parametrize("step", ["gptq", "coordinate_descent", "two_sided"])
def test_damping_reaches_every_step_of_rounding(step):
    generator = np.random.default_rng(0)
    kernel, *roots = (generator.normal(size=shape).astype(np.float32) for shape in ((16, 12), (16, 16), (12, 12)))
    inputs, outputs = (root.T @ root for root in roots)
    alone = {name: name == step for name in ("gptq", "coordinate_descent")}
    found = {}
    for damping in (0.01, 1.0):
        options = DefaultRecipe(damping=damping, **alone)
        given = outputs if step == "two_sided" else None
        found[damping] = default.round_kernel(kernel, inputs, given, jnp.float32(4), options).kernel.codes
    assert (found[0.01] != found[1.0]).any()


def test_kernels_are_rounded_by_close_ups_too_and_biases_corrected_without_them():
    model = random_model()
    first = chain(model.module, model.params, model.image_shape)[0]
    x, params = random_pixels(), first.parameters(model.params)
    near = 2 * random_pixels(count=6) + 1
    ((layer, shape),) = parts_of(first.segment, params, x).layers.items()

    def of(x, near=None):
        return default.input_moments(first.segment, layer, shape[-1], params, {}, x, near)

    both, alone, all_of_them = of(x, near), of(x), of(np.concatenate([x, near]))
    np.testing.assert_allclose(both.hessian, all_of_them.hessian, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(both.mean, alone.mean)
    rows = np.asarray(streaming.record(first.segment, params, {}, x).inputs[layer]).reshape(-1, shape[-1])
    np.testing.assert_allclose(alone.hessian, rows.T @ rows / len(rows), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(alone.mean, rows.mean(0), atol=1e-5)
