"""Preprocessing against straightforward Pillow code: bytes compare exactly, float32 to one rounding."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from psaq_jax.errors import InputError
from psaq_jax.models.preprocessing import FILTERS, Preprocessing
from tests.models.preprocessors import BIT, CONFIG, VIT, picture

SIZES = {"wide": (30, 77), "tall": (81, 43), "square": (64, 64), "small": (9, 13), "exact": (32, 32)}


def short_side_then_crop(image, short, crop, resample, halve=lambda n: n // 2):
    """torchvision's Resize(short) and CenterCrop(crop) on a PIL image, spelled out."""
    height, width = image.shape[:2]
    if width <= height:
        size = (short, int(short * height / width))
    else:
        size = (int(short * width / height), short)
    resized = np.asarray(Image.fromarray(image).resize(size, resample))
    top, left = halve(resized.shape[0] - crop), halve(resized.shape[1] - crop)
    return resized[top : top + crop, left : left + crop]


@pytest.mark.parametrize("name", SIZES)
def test_exact_resize_equals_pillow(name):
    image = picture(*SIZES[name])
    expected = np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(Preprocessing.from_huggingface(CONFIG, VIT).fit([image])[0], expected)


@pytest.mark.parametrize("name", SIZES)
def test_shortest_edge_and_crop_equal_pillow(name):
    image = picture(*SIZES[name])
    expected = short_side_then_crop(image, 40, 32, Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(Preprocessing.from_huggingface(CONFIG, BIT).fit([image])[0], expected)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("crop_pct", [0.875, 0.9, 0.95, 1.0])
def test_timm_crop_equals_pillow(name, crop_pct):
    preprocessing = Preprocessing.from_timm(
        {"input_size": [3, 32, 32], "crop_pct": crop_pct, "interpolation": "bicubic"}
    )
    image = picture(*SIZES[name])
    short = int(np.floor(32 / crop_pct))
    # torchvision's CenterCrop, which timm uses: int(round((height - crop) / 2.0))
    expected = short_side_then_crop(image, short, 32, Image.Resampling.BICUBIC, lambda n: int(round(n / 2.0)))
    np.testing.assert_array_equal(preprocessing.fit(image)[0], expected)


def test_timm_rounds_what_covers_an_oblong_crop():
    preprocessing = Preprocessing.from_timm({"input_size": [3, 24, 16], "crop_pct": 0.8})
    image = picture(51, 32)  # over 30x20 by 1.7 and 1.6: 31.9 rows
    resized = np.asarray(Image.fromarray(image).resize((20, 32), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(preprocessing.fit(image)[0], resized[4:28, 2:18])


@pytest.mark.parametrize("side", [31, 32, 33, 35])
def test_a_stack_is_cropped_as_a_list_is(side):
    preprocessing = Preprocessing.from_timm({"input_size": [3, 28, 28], "crop_pct": 28 / side})
    images = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), dtype=np.uint8)
    np.testing.assert_array_equal(preprocessing.fit(images), preprocessing.fit(list(images)))


def test_timm_squash_ignores_the_aspect():
    preprocessing = Preprocessing.from_timm({"input_size": [3, 32, 24], "crop_pct": 0.8, "crop_mode": "squash"})
    image = picture(50, 90)
    resized = np.asarray(Image.fromarray(image).resize((30, 40), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(preprocessing.fit(image)[0], resized[4:36, 3:27])


@pytest.mark.parametrize("code", range(6))
def test_every_pillow_filter_code(code):
    preprocessing = Preprocessing.from_huggingface(CONFIG, VIT | {"resample": code})
    assert FILTERS[preprocessing.interpolation] == code
    image = picture(50, 70)
    np.testing.assert_array_equal(
        preprocessing.fit(image)[0], np.asarray(Image.fromarray(image).resize((32, 32), code))
    )


def test_normalisation_formula():
    preprocessing = Preprocessing.from_huggingface(CONFIG, BIT)
    image = picture(32, 32)
    expected = (image / 255 - np.array(BIT["image_mean"])) / np.array(BIT["image_std"])
    pixels = preprocessing.normalize(image)
    assert pixels.dtype == np.float32
    # Two float32 roundings of numbers up to 2.7, against float64.
    np.testing.assert_allclose(pixels, expected, rtol=0, atol=5e-7)


def test_bounds_are_black_and_white():
    preprocessing = Preprocessing.from_huggingface(CONFIG, BIT)
    black, white = preprocessing.normalize(np.array([[0] * 3, [255] * 3], np.uint8))
    np.testing.assert_array_equal(preprocessing.lower, black)
    np.testing.assert_array_equal(preprocessing.upper, white)
    mean, std = np.float32(BIT["image_mean"]), np.float32(BIT["image_std"])
    np.testing.assert_allclose(preprocessing.lower, -mean / std, rtol=1e-6)
    np.testing.assert_allclose(preprocessing.upper, (1 - mean) / std, rtol=1e-6)
    assert preprocessing.pixel_range == (black.min(), white.max()) and len({*black, *white}) == 6
    assert preprocessing.lower.dtype == preprocessing.upper.dtype == np.float32


@settings(max_examples=30, deadline=None)
@given(
    st.tuples(*[st.floats(0.01, 2)] * 3),
    st.tuples(*[st.floats(0.05, 2)] * 3),
    st.sampled_from([1 / 255, 1.0, 1 / 127.5]),
)
def test_denormalize_inverts_every_byte(mean, std, factor):
    preprocessing = Preprocessing((16, 16), mean, std, rescale_factor=factor)
    every = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=-1)
    np.testing.assert_array_equal(preprocessing.denormalize(preprocessing(every)[0]), every)


def test_denormalize_clips():
    preprocessing = Preprocessing((1, 1), (0.5,) * 3, (0.5,) * 3)
    np.testing.assert_array_equal(preprocessing.denormalize([[-9.0, 0.1, 9.0]]), [[0, 140, 255]])


def test_every_accepted_shape_gives_the_same_pixels():
    preprocessing = Preprocessing.from_huggingface(CONFIG, VIT)
    for height, width in ((32, 32), (20, 40)):
        grey = picture(height, width)[..., 0]
        colour = np.repeat(grey[..., None], 3, axis=-1)
        expected = preprocessing([Image.fromarray(colour)])
        assert expected.shape == (1, 32, 32, 3)
        variants = {
            "[n,h,w,3]": colour[None], "[n,h,w,1]": grey[None, ..., None], "[n,h,w]": grey[None],
            "[h,w,3]": colour, "[h,w,1]": grey[..., None], "PIL grey": Image.fromarray(grey),
            "list": [grey], "list of [h,w,1]": [grey[..., None]], "list of [h,w,3]": [colour],
        }  # fmt: skip
        for name, images in variants.items():
            np.testing.assert_array_equal(preprocessing(images), expected, err_msg=name)


def test_a_list_may_mix_sizes_and_types():
    preprocessing = Preprocessing.from_huggingface(CONFIG, VIT)
    images = [picture(20, 30), Image.fromarray(picture(40, 10)), picture(32, 32)[..., :1]]
    np.testing.assert_array_equal(preprocessing(images), np.concatenate([preprocessing([image]) for image in images]))
    assert preprocessing([]).shape == (0, 32, 32, 3)


@pytest.mark.parametrize(
    "images, found",
    {
        "float": (np.zeros((1, 32, 32, 3), np.float32), "float32"),
        "nchw": (np.zeros((1, 3, 32, 32), np.uint8), r"\[1, 3, 32, 32\]"),
        "rgba": ([np.zeros((32, 32, 4), np.uint8)], r"\[32, 32, 4\]"),
        "flat": (np.zeros(7, np.uint8), r"\[7\]"),
        "empty image": (np.zeros((2, 0, 5, 3), np.uint8), r"\[2, 0, 5, 3\]"),
    }.values(),
)
def test_unusable_arrays_are_refused(images, found):
    with pytest.raises(InputError, match=found):
        Preprocessing.from_huggingface(CONFIG, VIT)(images)


def test_without_resizing_the_size_must_fit():
    preprocessing = Preprocessing.from_huggingface(CONFIG, VIT | {"do_resize": False})
    assert preprocessing(picture(32, 32)).shape == (1, 32, 32, 3)
    with pytest.raises(InputError, match="31x32 pixels, expected at least 32x32"):
        preprocessing(picture(31, 32))


def test_a_strip_is_not_blown_up():
    """A file of a few hundred bytes would take gigabytes."""
    cover = Preprocessing((224, 224), (0.0,) * 3, (1.0,) * 3, resize="cover")
    with pytest.raises(InputError, match="image: found 1x60000 pixels, which resizing makes 224x13440000"):
        cover([Image.new("L", (60_000, 1))])
    assert cover([Image.new("L", (100, 1))]).shape == (1, 224, 224, 3)


def test_another_image_size_scales_what_is_before_the_crop():
    timm = Preprocessing.from_timm({"input_size": [3, 224, 224], "crop_pct": 0.9}).with_image_size(384, 384)
    assert (timm.image_size, timm.resize_size) == ((384, 384), (426, 426))
    bit = Preprocessing.from_huggingface(CONFIG, BIT).with_image_size(64, 48)
    assert (bit.image_size, bit.resize_size) == ((64, 48), (80, 60))
    exact = Preprocessing.from_huggingface(CONFIG, VIT).with_image_size(48, 48)
    assert (exact.image_size, exact.resize_size) == ((48, 48), (48, 48))
    assert bit(picture(90, 90)).shape == (1, 64, 48, 3)
    unresized = Preprocessing((28, 28), (0.0,) * 3, (1.0,) * 3, resize="none", resize_size=(1, 1))
    assert unresized.with_image_size(14, 14).resize_size == (1, 1), "as artefacts take it"


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(8, 40), st.integers(8, 40), st.floats(0.3, 1))
def test_covering_always_leaves_enough_to_crop(height, width, target_height, target_width, crop_pct):
    cfg = {"input_size": [3, target_height, target_width], "crop_pct": crop_pct}
    pixels = Preprocessing.from_timm(cfg)(np.zeros((height, width, 3), np.uint8))
    assert pixels.shape == (1, target_height, target_width, 3)


def test_hashable_and_picklable():
    found = Preprocessing.from_huggingface(CONFIG, BIT)
    again = pickle.loads(pickle.dumps(found))
    assert again == found and hash(again) == hash(found) and hash(found.with_image_size(64, 64))
