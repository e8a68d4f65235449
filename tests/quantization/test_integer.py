"""Integer execution against NumPy's integers and against simulated quantization; the list of products."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from psaq_jax import calibrate, evaluate, load_model, quantize
from psaq_jax.data import load_dataset
from psaq_jax.evaluation import predict_logits
from psaq_jax.quantization import integer_plan
from psaq_jax.quantization.exact import dense, float_sums, product
from psaq_jax.quantization.integer import integer_model, integer_sums
from psaq_jax.quantization.integer_plan import coverage
from psaq_jax.quantization.representation import LogQuantizer, QuantizedKernel, UniformQuantizer
from tests.export.small_models import SWIN, SWINS, VITS, random_model, random_quantized
from tests.random_models import VIT, random_pixels

MODULES = VITS | {"swin": SWIN}
EXECUTIONS = {"integer": integer_sums, "simulated": float_sums}


def uniform(scale, zero_point, bits=8):
    return UniformQuantizer(jnp.float32(scale), jnp.float32(zero_point), jnp.float32(bits))


def on_grid(generator, shape, quantizer):
    """(codes, their values)."""
    codes = generator.integers(0, 2 ** int(quantizer.bits), shape)
    codes.reshape(-1)[:2] = 0, 2 ** int(quantizer.bits) - 1  # both ends
    return codes, ((codes - int(quantizer.zero_point)) * np.float32(quantizer.scale)).astype(np.float32)


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("bits", [4, 7, 8])
@pytest.mark.parametrize("zero_point", ["none", "middle", "all"])
def test_dense_equals_numpys_integers(execution, bits, zero_point):
    generator, levels = np.random.default_rng(bits), 2**bits - 1
    quantizer = uniform(0.0371, {"none": 0, "middle": levels // 3, "all": levels}[zero_point], bits)
    codes, x = on_grid(generator, (2, 7, 1300), quantizer)
    weights = generator.integers(-128, 128, (1300, 11)).astype(np.int8)
    weights[:, 0] = 127  # a sum beyond 2^24, which float32 cannot make term by term
    kernel = QuantizedKernel(jnp.asarray(weights), jnp.asarray(generator.uniform(0.001, 0.01, 11), jnp.float32))
    y = dense(EXECUTIONS[execution], x, quantizer, kernel, jnp.ones(11))
    exact = (codes - int(quantizer.zero_point)) @ weights.astype(np.int64)
    expected = exact * np.float64(quantizer.scale) * np.asarray(kernel.scale, np.float64) + 1
    # The sum is exact; turning it into float32, two products and a sum round four times.
    np.testing.assert_allclose(y, expected, rtol=4e-7, atol=4e-7)


def test_models_show_themselves_in_a_line_without_their_parameters():
    model, q = dataclasses.replace(random_model(SWIN), source="a\nname"), random_quantized(SWIN)
    form = "SwinTransformer, 18x16 pixels, 5 classes"
    assert repr(model) == rf"Model('a\nname', {form}, float32)"
    assert repr(model.with_dtype(jnp.bfloat16)) == rf"Model('a\nname', {form}, bfloat16)"
    form = f"QuantizedModel('', {form}, 4-bit weights, {{}} activations, recipe paper, simulated)"
    assert repr(q) == form.format("8-bit")
    assert repr(dataclasses.replace(q, activation_bits=None, sites={})) == form.format("floating-point")
    executed = integer_model(q)
    integer, every = sum(product.integer for product in executed.products), len(executed.products)
    assert 0 < integer < every
    share = f"{100 * coverage(executed.products):.1f} % of all multiply-adds"
    assert f"{executed}".endswith(f"recipe paper, {integer} of {every} products run in integers, {share})")


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("terms", [6, 700])
@pytest.mark.parametrize("equation", ["bhnd,bhmd->bhnm", "bhnm,bhmd->bhnd"])
def test_product_of_activations_equals_numpys_integers(execution, terms, equation):
    generator = np.random.default_rng(0)
    of_x, of_y = uniform(0.02, 37), uniform(0.5, 200)
    of_keys = (2, 3, 5, terms) if equation.endswith("m") else (2, 3, terms, 5)
    (a, x), (b, y) = on_grid(generator, (2, 3, 5, terms), of_x), on_grid(generator, of_keys, of_y)
    found = product(EXECUTIONS[execution], equation, x, y, of_x, of_y)
    exact = np.einsum(equation, a - 37, b - 200)
    np.testing.assert_allclose(found, exact * (np.float64(of_x.scale) * np.float64(of_y.scale)), rtol=2e-7)


def test_sums_are_the_same_bits_at_the_largest_codes():
    """Where float32 cannot hold the sums, both round them once."""
    generator, grid = np.random.default_rng(0), uniform(1, 0)
    x = generator.integers(200, 256, (3, 5000)).astype(np.float32)
    weights = generator.integers(100, 128, (5000, 7)).astype(np.int8)
    found = [np.asarray(sums("...i,io->...o", x, weights, grid, None)) for sums in EXECUTIONS.values()]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], (x.astype(np.int64) @ weights.astype(np.int64)).astype(np.float32))


def test_sums_of_two_activations_round_once():
    generator, grid = np.random.default_rng(0), uniform(1, 0)
    x, y = (generator.integers(200, 256, (1, 1, rows, 1028)).astype(np.float32) for rows in (4, 25))
    found = [np.asarray(sums("bhnd,bhmd->bhnm", x, y, grid, grid)) for sums in EXECUTIONS.values()]
    expected = (x.astype(np.int64) @ y.astype(np.int64).swapaxes(2, 3)).astype(np.float32)
    for sums in found:
        np.testing.assert_array_equal(sums, expected)


@pytest.mark.parametrize("weights", [127, -128, 7])
def test_sums_beyond_int32(weights):
    """Float sums are there for what does not fit int32, and round once all the same."""
    x, terms = np.full((2, 70_001), 255, np.float32), 70_001
    x[1, ::3] = -254
    codes = np.full((terms, 1), weights, np.int8)
    found = float_sums("...i,io->...o", x, codes)
    np.testing.assert_array_equal(found, (x.astype(np.int64) @ codes.astype(np.int64)).astype(np.float32))


def in_bfloat16(q):
    return dataclasses.replace(q, module=q.module.clone(dtype=jnp.bfloat16))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("run", [lambda q: q, integer_model, in_bfloat16])
def test_an_image_that_is_not_finite_has_nan_for_logits(run, value):
    model, pixels = run(random_quantized(VIT, 8, 8)), random_pixels(VIT, 2)
    sound = model(pixels)[1]
    pixels[0, 3, 4, 1] = value
    logits = np.asarray(model(pixels))
    assert np.isnan(logits[0]).all()
    np.testing.assert_array_equal(logits[1], sound)


def test_products_of_the_graph_are_integer():
    """What is compiled multiplies int8 by int8 into int32, once a product that is called integer."""
    model = integer_model(random_quantized(VIT, 8, 8))
    text = jax.jit(lambda x: model(x)).lower(random_pixels(VIT, 1)).as_text()
    lines = [line for line in text.splitlines() if "dot_general" in line]
    integers = [line for line in lines if line.count("xi8>") >= 2 and "xi32>" in line]
    assert len(integers) == sum(p.integer for p in model.products)
    assert len(lines) - len(integers) == sum(not p.integer for p in model.products)


@pytest.mark.parametrize("recipe", ["paper", "default"])
@pytest.mark.parametrize("name", VITS | SWINS)
def test_equals_simulated_quantization_bit_for_bit(name, recipe):
    module = (VITS | SWINS)[name]
    q, pixels = random_quantized(module, 4, 8, recipe), random_pixels(module, 64)
    np.testing.assert_array_equal(integer_model(q)(pixels), q(pixels))


@pytest.mark.parametrize("name", MODULES)
def test_every_product_of_the_paper_is_integer_but_that_with_softmax(name):
    module = MODULES[name]
    products = integer_model(random_quantized(module, 8, 8)).products
    blocks = sum(module.depths) if name == "swin" else module.depth
    names = [product.name.rpartition("/")[2] for product in products]
    for last in ("qkv", "query_key", "attention_value", "projection", "dense1", "dense2"):
        assert names.count(last) == blocks, last
    floats = [product for product in products if not product.integer]
    assert [p.name.rpartition("/")[2] for p in floats] == ["attention_value"] * blocks
    assert all("attention_probabilities" in product.reason for product in floats)
    assert 0.5 < coverage(products) < 1


def test_multiply_adds_of_every_product():
    """Of one image, in running order."""
    m = VIT
    c, h, patches = m.width, m.heads, math.prod(m.grid)
    n, d = patches + 1, c // h
    block = {
        "attention/qkv": n * c * 3 * c,
        "attention/query_key": h * n * n * d,
        "attention/attention_value": h * n * n * d,
        "attention/projection": n * c * c,
        "mlp/dense1": n * c * m.hidden,
        "mlp/dense2": n * m.hidden * c,
    }
    blocks = {f"block_{i}/{name}": count for i in range(m.depth) for name, count in block.items()}
    pixels = math.prod(m.patch_size) * 3
    expected = {"patch_embedding": patches * pixels * c} | blocks | {"head": c * m.classes}
    found = integer_model(random_quantized(m, 8, 8)).products
    assert [(p.name, p.multiply_adds) for p in found] == list(expected.items())
    floats = sum(count for name, count in expected.items() if name.endswith("attention_value"))
    assert coverage(found) == pytest.approx(1 - floats / sum(expected.values()))


def test_recipe_default():
    """The softmax output on a uniform grid: all integer; on a logarithmic one: that product is float, and says why."""
    q = random_quantized(VIT, 8, 8, recipe="default")
    assert coverage(integer_model(q).products) == 1
    logarithmic = LogQuantizer(jnp.float32(1), jnp.float32(2), jnp.float32(8))
    softmax = {site: logarithmic for site in q.sites if site.endswith("probabilities")}
    model = integer_model(dataclasses.replace(q, sites=q.sites | softmax))
    floats = [product for product in model.products if not product.integer]
    assert len(floats) == VIT.depth and all("not uniform (LogQuantizer)" in p.reason for p in floats)
    pixels = random_pixels(count=64)
    np.testing.assert_array_equal(model(pixels), dataclasses.replace(q, sites=q.sites | softmax)(pixels))


def test_activations_in_floating_point_leave_every_product_so():
    q = dataclasses.replace(random_quantized(VIT, 8, 8), sites={}, activation_bits=None)
    model, pixels = integer_model(q), random_pixels()
    assert coverage(model.products) == 0
    count = len(model.products)
    assert integer_plan.summary(model.products) == f"0 of {count} products run in integers, 0.0 % of all multiply-adds"
    np.testing.assert_array_equal(model(pixels), q(pixels))


def test_a_sum_that_might_not_fit_stays_in_floating_point(monkeypatch):
    q = random_quantized(VIT, 8, 8)
    monkeypatch.setattr(integer_plan, "LARGEST_SUM", 40 * 255 * 127)
    model = integer_model(q)
    refused = [p.name for p in model.products if "int32 ends at" in p.reason]
    assert refused == ["patch_embedding", "block_0/mlp/dense2"]
    assert not any(p.integer for p in model.products if p.name in refused)
    np.testing.assert_array_equal(model(random_pixels()), q(random_pixels()))


def test_a_module_in_bfloat16_runs_in_float32():
    q = random_quantized(VIT, 8, 8)
    narrow = dataclasses.replace(q, module=VIT.clone(dtype=jnp.bfloat16))
    np.testing.assert_array_equal(integer_model(narrow)(random_pixels()), integer_model(q)(random_pixels()))


@pytest.mark.parametrize("recipe", ["paper", "default"])
def test_the_bundled_model(recipe):
    model, data = load_model("bundled:fashion_mnist_vit"), load_dataset("bundled:fashion_mnist")
    images = data.train.sample(model.preprocessing, 32, 0)
    q = quantize(model, calibrate(model, images, recipe), 8, 8, recipe)
    pixels = data.sample(model.preprocessing, 1000, 0)
    np.testing.assert_array_equal(predict_logits(integer_model(q), pixels), predict_logits(q, pixels))


def test_evaluation_takes_it():
    images = np.random.default_rng(0).integers(0, 256, (10, 16, 20, 3), np.uint8)
    model = integer_model(random_quantized(VIT, 8, 8))
    assert evaluate(model, (images, np.arange(10) % 5), batch_size=4).examples == 10
