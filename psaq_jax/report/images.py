"""Images as PNG: single ones for the page, and the grid that a run writes beside its results."""

import io

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from psaq_jax.errors import InputError

TILE = 112  # pixels that the shorter side of an upscaled image has at least
GAP = 8
BACKGROUND, INK = (255, 255, 255), (70, 70, 70)


def encode(image: Image.Image) -> bytes:
    """The bytes of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "png", optimize=True)
    return buffer.getvalue()


def to_png(image: np.ndarray, longest: int | None = None) -> bytes:
    """uint8 [h, w, 3] -> PNG; larger images are scaled down to `longest` pixels on their longer side."""
    picture = Image.fromarray(check_images(image[None])[0])
    if longest and max(picture.size) > longest:
        picture.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    return encode(picture)


def image_grid(images: np.ndarray, labels=None, columns: int = 8) -> bytes:
    """A grid of images as PNG, small ones enlarged by a whole factor with square pixels (no smoothing).

    Args:
      images: uint8 [n, h, w, 3], n at least 1 (`Preprocessing.denormalize` makes them of normalised pixels).
      labels: n texts to write below the images, shortened where they are too long; None: no text.
      columns: images in a row, fewer where there are fewer images.
    Raises:
      InputError: another type or shape, no images, or another number of labels.
    """
    images = check_images(images)
    if labels is not None and len(labels) != len(images):
        raise InputError(f"image grid: found {len(labels)} labels for {len(images)} images, expected as many")
    height, width = images.shape[1:3]
    factor = max(1, -(-TILE // min(height, width)))
    tile_height, tile_width = height * factor, width * factor
    font = ImageFont.load_default(size=13)
    text_height = 0 if labels is None else 22
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    size = (GAP + columns * (tile_width + GAP), GAP + rows * (tile_height + text_height + GAP))
    grid = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(grid)
    for i, image in enumerate(images):
        left = GAP + i % columns * (tile_width + GAP)
        top = GAP + i // columns * (tile_height + text_height + GAP)
        tile = Image.fromarray(image).resize((tile_width, tile_height), Image.Resampling.NEAREST)
        grid.paste(tile, (left, top))
        if labels is not None:
            text = shortened(str(labels[i]), font, tile_width)
            draw.text((left + tile_width / 2, top + tile_height + 4), text, INK, font, anchor="ma")
    return encode(grid)


def shortened(text: str, font, width: int) -> str:
    """The text on one line, cut with an ellipsis where it is wider than `width` pixels."""
    text = " ".join(text.split())[: width + 1]  # no letter is narrower than a pixel
    if len(text) <= width and font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


def check_images(images) -> np.ndarray:
    """The images as they are, or InputError where they are not uint8 [n, h, w, 3] with n at least 1."""
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or not images.size:
        raise InputError(
            f"images: found {images.dtype} {list(images.shape)}, expected uint8 [n, h, w, 3], n at least 1; "
            "undo the normalisation with model.preprocessing.denormalize"
        )
    return images
