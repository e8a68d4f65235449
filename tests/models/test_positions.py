"""Interpolation of position embeddings."""

import numpy as np
import pytest
from PIL import Image

import psaq_jax
from psaq_jax.models.positions import bicubic_matrix, interpolate
from tests.golden_files import GOLDEN


def test_rows_sum_to_one():
    for before, after in [(7, 9), (16, 5), (4, 4), (1, 3), (37, 16)]:
        np.testing.assert_allclose(bicubic_matrix(before, after).sum(axis=1), 1, rtol=1e-12)


def test_the_same_size_is_the_identity():
    np.testing.assert_array_equal(bicubic_matrix(5, 5), np.eye(5))


def test_doubling_uses_torchs_coefficients():
    # By hand, a = -0.75. Output 4 lies at 1.75, so the samples 0 to 3 are 1.75, 0.75, 0.25 and 1.25 away;
    # up to 1: (a+2)d^3 - (a+3)d^2 + 1, beyond: a(d^3 - 5d^2 + 8d - 4).
    expected = [-0.03515625, 0.26171875, 0.87890625, -0.10546875]
    np.testing.assert_allclose(bicubic_matrix(8, 16)[4, :4], expected)


@pytest.mark.parametrize("before, after", [((7, 7), (4, 4)), ((37, 37), (16, 16)), ((4, 6), (8, 3)), ((5, 5), (9, 9))])
def test_antialiased_as_pillow_does_it(before, after):
    """Pillow's bicubic is torch's with antialias=True: the same coefficient, support and borders."""
    grid = np.random.default_rng(0).normal(size=before).astype(np.float32)
    expected = np.asarray(Image.fromarray(grid).resize(after[::-1], Image.Resampling.BICUBIC))
    found = interpolate(grid.reshape(-1, 1), before, after, antialias=True).reshape(after)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("name, size, antialiased", [
    ("hf_dinov2_registers", 32, True), ("hf_dinov2_swiglu", 32, False), ("hf_vit", 48, False), ("timm_vit", 48, True),
])  # fmt: skip
def test_dinov2_with_registers_and_timm_alone_are_antialiased(name, size, antialiased):
    """Which in torch changes the kernel of a larger grid too."""
    own, other = (psaq_jax.load_model(GOLDEN / "checkpoints" / name, size) for size in (None, size))
    table, grids = np.asarray(own.params["position_embedding"]), (own.module.grid, other.module.grid)
    expected, not_so = (interpolate(table, *grids, antialias=which) for which in (antialiased, not antialiased))
    np.testing.assert_array_equal(other.params["position_embedding"], expected)
    assert np.abs(expected - not_so).max() > 0.01


@pytest.mark.parametrize("special", [1, 2])
def test_special_tokens_stay_and_rows_and_columns_are_not_swapped(special):
    rows, columns = np.mgrid[0:4, 0:6].astype(np.float32)
    table = np.concatenate([np.full((special, 2), 9.0, np.float32), np.stack([rows, columns], -1).reshape(-1, 2)])
    found = interpolate(table, (4, 6), (8, 3))
    assert found.shape == (special + 24, 2)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found[:special], 9)
    grid = found[special:].reshape(8, 3, 2)
    np.testing.assert_allclose(grid[..., 0], np.broadcast_to(grid[:, :1, 0], (8, 3)), atol=1e-6)
    np.testing.assert_allclose(grid[..., 1], np.broadcast_to(grid[:1, :, 1], (8, 3)), atol=1e-6)
    assert (np.diff(grid[:, 0, 0]) > 0).all()
    np.testing.assert_allclose(grid[:, 0, 0] + grid[::-1, 0, 0], 3, atol=1e-6)  # symmetric about the middle


def test_equal_grids_change_nothing():
    table = np.ones((5, 3), np.float32)
    assert interpolate(table, (2, 2), (2, 2)) is table
