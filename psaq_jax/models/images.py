"""Pictures of every kind -> uint8 RGB: what Pillow opens and what people pass as arrays."""

import numpy as np
from PIL import Image, ImageOps

from psaq_jax.errors import InputError, reason_of

SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")


def to_rgb(image: Image.Image) -> Image.Image:
    """A PIL image of any mode -> upright mode RGB.

    EXIF rotation is applied (torchvision leaves it to the caller), where the EXIF can be read. Transparency is dropped,
    not blended: the stored colours count, as in torchvision and transformers.
    16-bit grey is scaled by 1/257 (Pillow's own conversion clips at 255); mode "I" is taken for 16 bits.

    Raises:
      InputError: a mode without a known white (floats, 32-bit integers) or a damaged file behind the image.
    """
    try:
        image.load()  # Pillow opens a file and leaves the rest of it for now
    except Exception as error:  # Pillow's readers raise whatever they run into, from OSError to TypeError
        raise InputError(f"image: cannot be decoded ({reason_of(error)}); replace or remove it") from None
    image = _upright(image)
    if image.mode == "RGB":
        return image
    if image.mode in SIXTEEN_BIT:
        values = np.asarray(image).astype(np.int64)
        if values.size and (values.min() < 0 or values.max() > 65535):
            raise InputError(
                f"image: found integers from {values.min()} to {values.max()}, expected 16 bits; save it as 8-bit PNG"
            )
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise InputError("image: found floating point pixels (mode F), expected integers; save it as 8-bit PNG")
    if image.mode == "P":  # a palette with transparency converts to RGB with a warning, by way of RGBA without
        image = image.convert("RGBA")
    try:
        return image.convert("RGB")
    except ValueError:
        raise InputError(f"image: cannot convert mode {image.mode} to RGB; save it as 8-bit PNG") from None


def _upright(image: Image.Image) -> Image.Image:
    try:
        return image if image.getexif().get(0x0112, 1) == 1 else ImageOps.exif_transpose(image)
    except Exception:  # as above; the pixels are whole
        return image


def as_list_or_stack(images) -> list | np.ndarray:
    """What a caller may pass -> uint8 [n, h, w, 1 or 3], or a list of PIL images and uint8 [h, w, 1 or 3].

    Raises:
      InputError: another type, dtype or shape.
    """
    if isinstance(images, Image.Image):
        return [images]
    if isinstance(images, list | tuple):
        return [image if isinstance(image, Image.Image) else _checked(image, (2, 3))[0] for image in images]
    return _checked(images, (3, 4))


def to_three_channels(images: np.ndarray) -> np.ndarray:
    """uint8 [n, h, w, 1 or 3] -> [n, h, w, 3], grey repeated."""
    return np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images


def _checked(images, dimensions) -> np.ndarray:
    """An array with one of two numbers of axes -> uint8 [n, h, w, 1 or 3]."""
    array = np.asarray(images)
    if array.dtype != np.uint8:
        raise InputError(
            f"images: found {array.dtype} {list(array.shape)}, expected uint8 (raw, 0 to 255) or PIL images; "
            "floating point pixels are taken for normalised already and go to the model as they are"
        )
    shape = array.shape
    if array.ndim == 2 and 2 in dimensions:
        array = array[None, ..., None]
    elif array.ndim == 3 and shape[-1] in (1, 3):
        array = array[None]
    elif array.ndim == 3 and 4 in dimensions:
        array = array[..., None]
    if array.ndim != 4 or array.shape[-1] not in (1, 3) or 0 in array.shape[1:]:
        expected = "[h,w], [h,w,1] or [h,w,3]" if 2 in dimensions else "[n,h,w,3], [n,h,w,1], [n,h,w] or [h,w,3]"
        raise InputError(f"images: found shape {list(shape)}, expected {expected}; drop an alpha channel, NCHW -> NHWC")
    return array
