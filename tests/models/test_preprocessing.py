"""Preprocessing against straightforward Pillow code: bytes compare exactly, float32 to one rounding."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from psaq_jax.errors import InputError
from psaq_jax.models.images import to_rgb
from psaq_jax.models.preprocessing import FILTERS, Preprocessing

SIZES = {"wide": (30, 77), "tall": (81, 43), "square": (64, 64), "small": (9, 13), "exact": (32, 32)}
VIT = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}, "resample": 2}
BIT = {
    "image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 40}, "resample": 3,
    "do_center_crop": True, "crop_size": {"height": 32, "width": 32},
    "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
}  # fmt: skip
CONFIG = {"model_type": "vit", "image_size": 32}


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def short_side_then_crop(image, short, crop, resample):
    """torchvision's Resize(short) and CenterCrop(crop) on a PIL image, spelled out."""
    height, width = image.shape[:2]
    if width <= height:
        size = (short, int(short * height / width))
    else:
        size = (int(short * width / height), short)
    resized = np.asarray(Image.fromarray(image).resize(size, resample))
    top, left = (resized.shape[0] - crop) // 2, (resized.shape[1] - crop) // 2
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
    expected = short_side_then_crop(image, int(np.floor(32 / crop_pct)), 32, Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(preprocessing.fit(image)[0], expected)


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


def test_sixteen_bit_grey_is_scaled_not_clipped():
    values = np.array([[0, 128, 129, 257, 32768, 65534, 65535]], np.uint16)
    expected = np.rint(values / 257).astype(np.uint8)
    for mode in ("I;16", "I"):
        image = Image.fromarray(values) if mode == "I;16" else Image.fromarray(values.astype(np.int32))
        assert image.mode == mode
        np.testing.assert_array_equal(np.asarray(to_rgb(image)), np.repeat(expected[..., None], 3, axis=-1))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV"])
def test_pil_modes_become_rgb(mode):
    image = Image.fromarray(picture(12, 10)).convert("P" if mode == "PA" else mode).convert(mode)
    np.testing.assert_array_equal(np.asarray(to_rgb(image)), np.asarray(image.convert("RGB")))


def test_palette_with_transparency_keeps_its_colours(tmp_path):
    image = Image.fromarray(picture(12, 10)).quantize(8)
    image.save(tmp_path / "x.png", transparency=bytes([0, 128] + [255] * 6))
    with Image.open(tmp_path / "x.png") as opened:
        assert opened.mode == "P" and "transparency" in opened.info
        np.testing.assert_array_equal(np.asarray(to_rgb(opened)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_the_picture_upright(tmp_path, orientation):
    upright = np.zeros((8, 16, 3), np.uint8)
    upright[:4, :8] = 255
    undo = [None, None, 0, 3, 1, 5, 2, 6, 4][orientation]  # the transposition that stores it so
    stored = Image.fromarray(upright) if undo is None else Image.fromarray(upright).transpose(undo)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "x.png", exif=exif)
    with Image.open(tmp_path / "x.png") as opened:
        np.testing.assert_array_equal(np.asarray(to_rgb(opened)), upright)


@pytest.mark.parametrize(
    "image, found",
    {
        "float": (Image.new("F", (2, 2)), "mode F"),
        "negative": (Image.new("I", (2, 2), -5), "from -5"),
        "premultiplied": (Image.new("La", (2, 2)), "La"),
    }.values(),
)
def test_modes_without_a_known_white_are_refused(image, found):
    with pytest.raises(InputError, match=found):
        to_rgb(image)


@pytest.mark.parametrize(
    "model_type, size, before, mean",
    [
        ("deit", 224, 256, 0.485),
        ("vit", 224, 248, 0.5),
        ("swin", 224, 248, 0.485),
        ("dinov2", 518, 592, 0.485),
    ],
)
def test_families_without_a_preprocessor_file(model_type, size, before, mean):
    found = Preprocessing.from_huggingface({"model_type": model_type, "image_size": size}, None)
    assert (found.image_size, found.resize_size, found.resize) == ((size, size), (before, before), "cover")
    assert found.mean[0] == mean and found.interpolation == "bicubic"


@pytest.mark.parametrize(
    "preprocessor, geometry",
    {
        "feature extractor, integer size": (
            {"feature_extractor_type": "ViTFeatureExtractor", "size": 32}, ("exact", (32, 32), (32, 32)),
        ),
        "deit feature extractor": (
            {"feature_extractor_type": "DeiTFeatureExtractor", "size": 36, "crop_size": 32},
            ("exact", (36, 36), (32, 32)),
        ),
        "deit without a mention of a crop": (
            {"image_processor_type": "DeiTImageProcessor", "size": {"height": 32, "width": 32}},
            ("exact", (32, 32), (32, 32)),
        ),
        "deit default crop": (
            {"image_processor_type": "DeiTImageProcessorFast", "size": 40}, ("exact", (40, 40), (32, 32)),
        ),
        "bit, integer size is the shortest edge": (
            {"image_processor_type": "BitImageProcessorFast", "size": 40, "crop_size": 30},
            ("cover", (40, 40), (30, 30)),
        ),
        "no type": ({"size": {"height": 24, "width": 32}}, ("exact", (24, 32), (24, 32))),
        "crop switched off": (
            {"image_processor_type": "DeiTImageProcessor", "size": 40, "do_center_crop": False},
            ("exact", (40, 40), (40, 40)),
        ),
    }.values(),
)  # fmt: skip
def test_forms_of_the_preprocessor_file(preprocessor, geometry):
    found = Preprocessing.from_huggingface(CONFIG, preprocessor)
    assert (found.resize, found.resize_size, found.image_size) == geometry


def test_flags_switch_off_rescaling_and_normalising():
    found = Preprocessing.from_huggingface(CONFIG, VIT | {"do_rescale": False, "do_normalize": False})
    image = picture(32, 32)
    np.testing.assert_array_equal(found(image)[0], image.astype(np.float32))


@pytest.mark.parametrize(
    "preprocessor, field",
    [
        ({"image_processor_type": "CLIPSegProcessor"}, "image_processor_type"),
        (VIT | {"resample": 6}, "resample"),
        (VIT | {"resample": "bicubic"}, "resample"),
        (VIT | {"size": {"height": 32}}, "size"),
        (VIT | {"size": -3}, "size"),
        (VIT | {"size": {"longest_edge": 32}}, "size"),
        (BIT | {"size": {"shortest_edge": 40, "longest_edge": 99}}, "size.longest_edge"),
        (BIT | {"crop_size": "32"}, "crop_size"),
        (BIT | {"crop_size": 41}, "crop_size"),
        (BIT | {"do_center_crop": False}, "do_center_crop"),
        (VIT | {"do_resize": "yes"}, "do_resize"),
        (VIT | {"rescale_factor": 0}, "rescale_factor"),
        (VIT | {"image_mean": [0.5, 0.5]}, "image_mean"),
        (VIT | {"image_std": [0.5, 0.5, 0.0]}, "image_std"),
        (VIT | {"image_std": "0.5"}, "image_std"),
    ],
)
def test_bad_fields_are_named(preprocessor, field):
    with pytest.raises(InputError, match=f"^{field}: found .*, expected .*; ") as error:
        Preprocessing.from_huggingface(CONFIG, preprocessor)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "cfg, field",
    [
        ({"input_size": [224, 224]}, "pretrained_cfg.input_size"),
        ({"input_size": [1, 28, 28]}, "pretrained_cfg.input_size"),
        ({"interpolation": "random"}, "pretrained_cfg.interpolation"),
        ({"crop_mode": "border"}, "pretrained_cfg.crop_mode"),
        ({"crop_pct": 1.1}, "pretrained_cfg.crop_pct"),
        ({"crop_pct": 0}, "pretrained_cfg.crop_pct"),
        ({"std": [1, 1, 0]}, "pretrained_cfg.std"),
    ],
)
def test_bad_timm_fields_are_named(cfg, field):
    with pytest.raises(InputError, match=f"^{field}: found .*, expected .*; "):
        Preprocessing.from_timm(cfg)


def test_another_image_size_scales_what_is_before_the_crop():
    timm = Preprocessing.from_timm({"input_size": [3, 224, 224], "crop_pct": 0.9}).with_image_size(384, 384)
    assert (timm.image_size, timm.resize_size) == ((384, 384), (426, 426))
    bit = Preprocessing.from_huggingface(CONFIG, BIT).with_image_size(64, 48)
    assert (bit.image_size, bit.resize_size) == ((64, 48), (80, 60))
    exact = Preprocessing.from_huggingface(CONFIG, VIT).with_image_size(48, 48)
    assert (exact.image_size, exact.resize_size) == ((48, 48), (48, 48))
    assert bit(picture(90, 90)).shape == (1, 64, 48, 3)


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
