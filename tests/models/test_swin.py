"""Swin's geometry: windows, shifts, padding, merging, and the three layouts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import psaq_jax
from psaq_jax.models import swin
from psaq_jax.quantization.recipes import site_filter
from psaq_jax.sites import record, site_names
from tests.golden_files import GOLDEN, golden, nhwc

MORE = sorted(path.parent.name for path in (GOLDEN / "more").glob("*/config.json"))


@pytest.mark.parametrize("name", MORE)
def test_padded_oblong_and_clamped_maps_match_their_own_library(name):
    """Made by tests/golden/more/make.py: windows that don't divide the map, images that are not square."""
    archive = golden(f"more/{name}/reference.npz")
    model = psaq_jax.load_model(GOLDEN / "more" / name)
    # Float32 sums in another order, logits of order 1.
    np.testing.assert_allclose(model(nhwc(archive["pixel_values_nchw"])), archive["logits"], atol=5e-6)


@pytest.mark.parametrize("name", [name for name in MORE if "swin" in name])
def test_projections_see_no_token_that_only_pads_the_map(name):
    """Otherwise these would count in the projection's second moments, ranges and corrected biases."""
    model = psaq_jax.load_model(GOLDEN / "more" / name)
    images = nhwc(golden(f"more/{name}/reference.npz")["pixel_values_nchw"])
    _, sites = jax.eval_shape(lambda: record(model.module, model.params, images, "*"))
    projected = {name: site.shape for name, site in sites.items() if name.endswith("projection_output")}
    assert projected, "no block"
    for site, shape in projected.items():
        assert shape == sites[site.replace("attention/projection_output", "residual1")].shape


def test_more_references_are_there():
    assert len(MORE) == 9


@pytest.mark.parametrize(
    ("size", "window", "odd", "convention", "expected"),
    [
        ((8, 8), (4, 4), False, "transformers", ((4, 4), (0, 0))),
        ((8, 8), (4, 4), True, "transformers", ((4, 4), (2, 2))),
        ((14, 14), (7, 7), True, "timm", ((7, 7), (3, 3))),
        ((7, 7), (7, 7), True, "timm", ((7, 7), (0, 0))),
        ((4, 4), (7, 7), True, "transformers", ((4, 4), (0, 0))),
        ((4, 4), (7, 7), True, "timm", ((4, 4), (0, 0))),
        ((4, 9), (5, 5), True, "transformers", ((4, 4), (0, 0))),
        ((4, 9), (5, 5), True, "timm", ((4, 5), (0, 2))),
    ],
)
def test_window_and_shift(size, window, odd, convention, expected):
    assert swin.window_and_shift(size, window, odd, convention) == expected


@pytest.mark.parametrize(
    ("convention", "expected"),
    [("transformers", [(10, 7), (5, 4), (3, 2), (2, 1)]), ("timm", [(9, 7), (5, 4), (3, 2), (2, 1)])],
)
def test_merging_rounds_up_what_it_halves(convention, expected):
    module = swin.SwinTransformer((38, 28), (4, 4), (8,) * 4, (1,) * 4, (1,) * 4, (8,) * 4, (7, 7), 5)
    module = module.clone(convention=convention)
    assert [module.map_size(stage) for stage in range(4)] == expected


def test_windows_are_image_major_and_row_major():
    x = np.arange(2 * 4 * 6).reshape(2, 4, 6, 1)
    found = swin.partition(x, (2, 3))
    assert found.shape == (8, 6, 1)
    np.testing.assert_array_equal(found[1, :, 0], [3, 4, 5, 9, 10, 11])  # the window right of the first
    np.testing.assert_array_equal(found[4, :, 0], [24, 25, 26, 30, 31, 32])  # the first of the second image
    np.testing.assert_array_equal(swin.unpartition(found, (2, 3), (4, 6)), x)


@pytest.mark.parametrize("window", [(2, 2), (3, 4), (1, 5)])
def test_relative_position_index(window):
    tokens = [(r, c) for r in range(window[0]) for c in range(window[1])]
    expected = [
        [(r - s + window[0] - 1) * (2 * window[1] - 1) + c - d + window[1] - 1 for s, d in tokens] for r, c in tokens
    ]
    np.testing.assert_array_equal(swin.relative_position_index(window), expected)


@pytest.mark.parametrize(("size", "window", "shift"), [((8, 8), (4, 4), (2, 2)), ((6, 9), (3, 3), (0, 1))])
def test_shift_regions_are_the_slices_of_the_release(size, window, shift):
    regions = np.zeros((1, *size, 1))
    slices = [
        (slice(0, -w), slice(-w, -s), slice(-s, None)) if s else (slice(None),)
        for w, s in zip(window, shift, strict=True)
    ]
    for i, rows in enumerate(slices[0]):
        for j, columns in enumerate(slices[1]):
            regions[:, rows, columns] = 3 * i + j
    expected = swin.partition(regions, window)[..., 0]
    found = swin.shift_regions(size, window, shift)
    same = expected[:, :, None] == expected[:, None, :]
    np.testing.assert_array_equal(found[:, :, None] == found[:, None, :], same)
    assert not same.all()


def test_merging_takes_the_four_patches_column_by_column():
    x = jnp.arange(9.0).reshape(1, 3, 3, 1)
    merging = swin.PatchMerging()
    variables = {
        "params": {
            "norm": {"scale": jnp.zeros(4), "bias": jnp.arange(4.0)},
            "reduction": {"kernel": jnp.eye(4)[:, :2]},
        }
    }
    assert merging.apply(variables, x).shape == (1, 2, 2, 2)  # an odd map is padded
    seen = []

    def look(next_fun, args, kwargs, context):
        if isinstance(context.module, nn.LayerNorm):
            seen.append(args[0])
        return next_fun(*args, **kwargs)

    with nn.intercept_methods(look):
        merging.apply(variables, x)
    np.testing.assert_array_equal(seen[0][0, 0, 0], [0, 3, 1, 4])
    np.testing.assert_array_equal(seen[0][0, 1, 1], [8, 0, 0, 0])


def tiny(**changes):
    arguments = {
        "image_size": (16, 16), "patch_size": (2, 2), "widths": (8, 16), "depths": (2, 2), "heads": (2, 4),
        "hidden": (16, 32), "window": (4, 4), "classes": 3,
    }  # fmt: skip
    return swin.SwinTransformer(**(arguments | changes))


@pytest.mark.parametrize("depths", [(2, 2), (1, 3)])
def test_twelve_sites_a_block(depths):
    module = tiny(depths=depths)
    params = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]
    wanted = site_filter("paper")
    names = [name for name in site_names(module, params, (16, 16, 3)) if wanted(name)]
    assert len(names) == 3 + 12 * sum(depths) + 2 + 3


def test_bfloat16_stays_close_and_logits_stay_float32():
    model = psaq_jax.load_model(GOLDEN / "checkpoints/hf_swin").with_dtype(jnp.bfloat16)
    archive = golden("checkpoints/hf_swin/reference.npz")
    found = model(nhwc(archive["pixel_values_nchw"]))
    assert found.dtype == jnp.float32
    largest = abs(archive["logits"]).max()
    assert abs(found - archive["logits"]).max() < 0.05 * largest + 0.05  # bfloat16 has 8 bits


def test_module_attributes_that_synthesis_reads():
    module = tiny()
    assert module.special_tokens == 0
    assert module.synthesis_learning_rate == 0.25
    assert hash(module) == hash(tiny())
