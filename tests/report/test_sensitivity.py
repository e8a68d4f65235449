"""Sensitivities: all at once is the quantized model, one compilation, the right order and units."""

import numpy as np
import pytest

import psaq_jax
from psaq_jax.errors import InputError
from psaq_jax.quantization.transform import kernel_sizes
from psaq_jax.report import measure_sensitivity
from psaq_jax.report.sensitivity import agreement, block_of, kernel_paths, sqnr_db
from tests.quick_recipe import QUICK
from tests.report.samples import image_sets

pytestmark = pytest.mark.usefixtures("quickly_compiled")


@pytest.fixture(scope="module")
def pixels(vit):
    return image_sets(vit, 8)["noise"]


@pytest.fixture(scope="module")
def ranges(vit, pixels):
    return psaq_jax.calibrate(vit, pixels)


@pytest.fixture(scope="module")
def found(vit, ranges, pixels):
    return measure_sensitivity(vit, psaq_jax.quantize(vit, ranges, 4, 4), pixels)


def test_every_site_kernel_and_block_in_running_order(vit, ranges, found):
    assert [s.name for s in found if s.kind == "activations"] == list(ranges)
    kernels = [s.name for s in found if s.kind == "weights"]
    assert kernels[0] == "patch_embedding" and kernels[-1] == "head"
    assert kernels[1:5] == [
        "block_0/attention/qkv", "block_0/attention/projection", "block_0/mlp/dense1", "block_0/mlp/dense2",
    ]  # fmt: skip
    assert [s.name for s in found if s.kind == "block"] == [f"block_{i}" for i in range(vit.module.depth)]
    assert found[-1].kind == "all"


def test_blocks_are_there_where_activations_are_floats(vit, pixels):
    found = measure_sensitivity(vit, psaq_jax.quantize(vit, {}, 4, None), pixels)
    assert [s.name for s in found if s.kind == "block"] == [f"block_{i}" for i in range(vit.module.depth)]
    assert not [s for s in found if s.kind == "activations"]


def test_everything_at_once_is_the_quantized_model(vit, ranges, pixels, found):
    logits = np.asarray(psaq_jax.quantize(vit, ranges, 4, 4)(pixels))
    # One rounding that falls the other way, in another compilation, moves the error: 4 bits make that rare.
    np.testing.assert_allclose(found[-1].sqnr_db, sqnr_db(np.asarray(vit(pixels)), logits), atol=1.0)


def test_one_alone_loses_less_than_its_block_and_that_less_than_everything(found):
    for block in (s for s in found if s.kind == "block"):
        parts = [s for s in found if s.kind != "block" and block_of(s.name) == block.name]
        assert min(s.sqnr_db for s in parts) > block.sqnr_db + 1  # seen: 1.7 or more
        assert block.sqnr_db > found[-1].sqnr_db + 3  # seen: 5.6 or more


def test_one_kernel_alone_is_that_kernel_quantized(vit, ranges, pixels, found):
    q = psaq_jax.quantize(vit, ranges, 4, 4)
    params = vit.params | {"head": vit.params["head"] | {"kernel": q.params["head"]["kernel"].dequantize()}}
    reference, logits = np.asarray(vit(pixels)), np.asarray(vit.replace(params=params)(pixels))
    head = next(s for s in found if s.kind == "weights" and s.name == "head")
    np.testing.assert_allclose(head.sqnr_db, sqnr_db(reference, logits), rtol=1e-3)
    assert head.agreement == agreement(reference, logits) < 100


def test_other_bits_compile_nothing_and_more_bits_lose_less(vit, ranges, pixels, found, compilations):
    q = psaq_jax.quantize(vit, ranges, 8, 8)
    with compilations() as count:
        finer = measure_sensitivity(vit, q, pixels)
    assert count() == 0
    assert np.median([s.sqnr_db for s in finer]) > np.median([s.sqnr_db for s in found]) + 10


def test_recipes_that_fold_are_measured_on_plain_grids(vit, pixels, found):
    q = psaq_jax.quantize(vit, None, 4, 4, recipe="default", images=pixels, options=QUICK)
    ours = measure_sensitivity(vit, q, pixels)
    assert {s.name for s in ours if s.kind == "activations"} == q.sites.keys()  # no residual sums
    assert "all" not in {s.kind for s in ours}  # everything at once is another model
    weights, plain = ({s.name: s for s in some if s.kind == "weights"} for some in (ours, found))
    ends = {"patch_embedding", "head"}  # which have 8 bits
    assert {name for name in weights if weights[name] != plain[name]} == ends
    assert all(weights[name].sqnr_db > plain[name].sqnr_db + 15 for name in ends)


def test_swin_and_progress(swin):
    pixels = image_sets(swin, 2)["noise"]
    seen = []
    q = psaq_jax.quantize(swin, psaq_jax.calibrate(swin, pixels), 8, 8)
    found = measure_sensitivity(swin, q, pixels, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i + 1, len(found)) for i in range(len(found))]
    assert "stage_1/block_1" in [s.name for s in found if s.kind == "block"]
    kernels = kernel_paths(q)
    assert kernels[0] == "patch_embedding" and kernels[-1] == "head"
    assert sorted(kernels) == sorted(kernel_sizes(swin.params))


def test_refuses_another_model(vit, swin, ranges, pixels):
    with pytest.raises(InputError, match="another architecture"):
        measure_sensitivity(swin, psaq_jax.quantize(vit, ranges), pixels)
    with pytest.raises(InputError, match="calibration images"):
        measure_sensitivity(vit, psaq_jax.quantize(vit, ranges), pixels[:, 1:])


def test_units():
    reference = np.array([[1.0, -1.0], [2.0, -2.0]])
    np.testing.assert_allclose(sqnr_db(reference, reference * 1.1), 20, rtol=1e-6)
    assert sqnr_db(reference, reference) == 140
    assert sqnr_db(reference, reference + 5) == 140  # softmax does not see it
    np.testing.assert_allclose(sqnr_db(reference[:, :1], reference[:, :1] * 1.1), 20, rtol=1e-6)  # one class has none
    assert agreement(reference, reference * [[1], [-1]]) == 50


@pytest.mark.parametrize(
    "name, block",
    [
        ("block_3/mlp/dense1", "block_3"),
        ("stage_1/block_0/residual1", "stage_1/block_0"),
        ("head_input", None),
    ],
)
def test_block_of(name, block):
    assert block_of(name) == block
