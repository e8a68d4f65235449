"""Views of calibration images: on plain grounds, and close-ups."""

import numpy as np

from psaq_jax.quantization.views import ENLARGEMENTS, SHRINKS, _placed_batch, close_ups, with_plain_grounds


def test_every_image_comes_once_more_shrunk_on_a_plain_ground():
    images = np.random.default_rng(0).normal(size=(4, 20, 30, 3)).astype(np.float32)
    views = with_plain_grounds(images)
    assert views.shape == (8, 20, 30, 3) and views.dtype == np.float32
    np.testing.assert_array_equal(views[:4], images)
    assert views.min() >= images.min() and views.max() <= images.max()
    least, greatest, grounds = images.min((0, 1, 2)), images.max((0, 1, 2)), []
    for view in views[4:]:
        colours, counts = np.unique(np.round(view.reshape(-1, 3), 4), axis=0, return_counts=True)
        covered = 1 - counts.max() / counts.sum()  # all but the ground, the most frequent colour
        assert SHRINKS[0] ** 2 * 0.8 < covered < SHRINKS[1] ** 2 * 1.2
        assert len(colours) > 20
        ground = (colours[counts.argmax()] - least) / (greatest - least)
        np.testing.assert_allclose(ground, ground[0], atol=1e-3)  # colours are rounded
        grounds.append(ground[0])
    assert np.diff(np.sort(grounds)).min() > 0.01, "each has a brightness of its own"


def test_close_ups_are_parts_enlarged():
    """Of a ramp, whose slope says how much it was enlarged and whose values say where it lay."""
    rows, columns = np.mgrid[0:48, 0:64].astype(np.float32)
    images = np.stack([rows, columns, rows + columns], axis=-1)[None].repeat(40, axis=0)
    views, grey = np.split(close_ups(images), 2)
    assert views.shape == images.shape and views.dtype == grey.dtype == np.float32
    inside = views[:, 12:-12, 12:-12]  # cubic kernels see no edge there
    down, across = np.diff(inside[..., 0], axis=1), np.diff(inside[..., 1], axis=2)
    enlargements = 1 / down.mean((1, 2))
    np.testing.assert_allclose(across.mean((1, 2)) * enlargements, 1, rtol=1e-3)
    assert ENLARGEMENTS[0] * 0.99 < enlargements.min() < 3 < 6 < enlargements.max() < ENLARGEMENTS[1] * 1.01
    assert views.min() >= 0 and views[..., 0].max() <= 47 and views[..., 1].max() <= 63
    places = inside[..., 0].mean((1, 2)) / 47
    assert places.min() < 0.3 and places.max() > 0.7
    np.testing.assert_allclose(inside[..., 2], inside[..., 0] + inside[..., 1], atol=1e-3)
    assert np.ptp(grey[grey.min(-1) < 47], axis=-1).max() == 0  # no colour but where a channel ends
    slopes = [np.median(steps[steps > 0.001]) for steps in np.abs(np.diff(grey[..., 0], axis=1))]
    assert np.median(slopes) < 0.5  # of most close-ups; shrunk images would have their own, 2/3, or more
    assert all(np.unique(np.round(view, 3), return_counts=True)[1].max() > view.size / 8 for view in grey)  # a ground


def test_views_follow_from_the_seed():
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    for views in (with_plain_grounds, close_ups):
        np.testing.assert_array_equal(views(images, 3), views(images, 3))
        assert (views(images, 3) != views(images, 4)).any()


def test_many_images_are_placed_some_at_a_time(monkeypatch):
    images = np.random.default_rng(0).normal(size=(5, 8, 8, 3)).astype(np.float32)
    expected, sizes = [make(images) for make in (with_plain_grounds, close_ups)], []

    def counted(some, *rest):
        sizes.append(len(some))
        return _placed_batch(some, *rest)

    monkeypatch.setattr("psaq_jax.quantization.views.BATCH", 2)
    monkeypatch.setattr("psaq_jax.quantization.views._placed_batch", counted)
    for make, whole in zip((with_plain_grounds, close_ups), expected, strict=True):
        np.testing.assert_allclose(make(images), whole, atol=1e-6)
    assert sizes == [2, 2, 1] * 5


def test_grey_is_the_mean_of_the_colours():
    """Of plain images, black and (1, 2, 6), and of their grounds, which are between them."""
    images = np.zeros((8, 16, 16, 3), np.float32)
    images[1:] = 1, 2, 6
    _, grey = np.split(close_ups(images), 2)
    np.testing.assert_allclose(grey[1:].max((1, 2)), [[1, 2, 3]] * 7, rtol=1e-5)  # clipped at each colour's greatest
    np.testing.assert_allclose(grey[..., 0], np.minimum(grey[..., 2], 1), rtol=1e-5)


def brightnesses(views, least, greatest):
    """Of each view's ground, its most frequent value, as a part of the way from the least to the greatest."""
    found = []
    for view in views:
        values, counts = np.unique(np.round(view, 3), return_counts=True)
        found.append((values[counts.argmax()] - least) / (greatest - least))
    return np.array(found)


def test_grounds_and_enlargements_are_drawn_each_for_itself():
    """Of equal seeds: the brightest grounds are not those of the largest close-ups, and none comes twice."""
    rows, columns = np.mgrid[0:48, 0:64].astype(np.float32)
    images = np.stack([rows, columns, rows + columns], axis=-1)[None].repeat(40, axis=0)
    plain, (views, grey) = with_plain_grounds(images, 3)[40:], np.split(close_ups(images, 3), 2)
    slopes = np.diff(views[:, 12:-12, 12:-12, 0], axis=1).mean((1, 2))
    drawn = [
        np.log(1 / slopes),
        brightnesses(plain[..., 0], images[..., 0].min(), images[..., 0].max()),
        brightnesses(grey[..., 0], views.min((0, 1, 2)).mean(), views.max((0, 1, 2)).mean()),
    ]
    related = np.abs(np.corrcoef(drawn) - np.eye(3))
    assert related.max() < 0.5  # of 40 pairs of independent numbers one in a thousand is further away from 0
