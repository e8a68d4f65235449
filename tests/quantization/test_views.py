"""Calibration images on plain grounds."""

import numpy as np

from psaq_jax.quantization.views import GREATEST, LEAST, with_plain_grounds


def test_every_image_comes_once_more_shrunk_on_a_plain_ground():
    images = np.random.default_rng(0).normal(size=(4, 20, 30, 3)).astype(np.float32)
    views = with_plain_grounds(images)
    assert views.shape == (8, 20, 30, 3) and views.dtype == np.float32
    np.testing.assert_array_equal(views[:4], images)
    assert views.min() >= images.min() and views.max() <= images.max()
    for view in views[4:]:
        colours, counts = np.unique(np.round(view.reshape(-1, 3), 4), axis=0, return_counts=True)
        covered = 1 - counts.max() / counts.sum()  # all but the ground, the most frequent colour
        assert LEAST**2 * 0.8 < covered < GREATEST**2 * 1.2
        assert len(colours) > 20


def test_views_follow_from_the_seed():
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    np.testing.assert_array_equal(with_plain_grounds(images, 3), with_plain_grounds(images, 3))
    assert (with_plain_grounds(images, 3) != with_plain_grounds(images, 4)).any()
