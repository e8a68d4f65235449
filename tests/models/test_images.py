"""Pictures of every kind as RGB: modes, transparency, orientation, sixteen bits."""

import numpy as np
import pytest
from PIL import Image

from psaq_jax.errors import InputError
from psaq_jax.models.images import to_rgb
from tests.models.preprocessors import picture


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


@pytest.mark.parametrize("mode", ["RGB", "L", "I;16", "P"])
def test_a_file_cut_short_is_one_line(tmp_path, mode):
    """Which Pillow sees when the pixels are asked for, not when it opens the file."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    (Image.fromarray(noise).convert("L" if mode == "I;16" else mode).convert(mode)).save(tmp_path / "x.png")
    (tmp_path / "x.png").write_bytes((tmp_path / "x.png").read_bytes()[:2000])
    with Image.open(tmp_path / "x.png") as opened, pytest.raises(InputError, match="cannot be decoded"):
        to_rgb(opened)


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


@pytest.mark.parametrize("kind", ["png", "webp", "jpeg"])
def test_exif_that_cannot_be_read_turns_nothing(tmp_path, kind):
    stored = Image.new("RGB", (16, 8), "red")
    stored.save(tmp_path / f"x.{kind}", exif=b"Exif\0\0garbagegarbage")
    with Image.open(tmp_path / f"x.{kind}") as opened:
        assert to_rgb(opened).size == (16, 8)


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
