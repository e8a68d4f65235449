"""From raw images to normalised pixels, exactly as the checkpoint's own library does it with Pillow.

Shapes: n images, h height, w width. The resize filters, roundings and crops follow Hugging Face's Pillow
image processors (identical to torchvision on PIL images) and timm's evaluation transform.
"""

import dataclasses
import functools

import numpy as np
from PIL import Image

from psaq_jax.errors import InputError
from psaq_jax.models import images as pictures
from psaq_jax.models import preprocessing_configs as configs

MOST_PIXELS = 2**26  # of a resized image: a strip of 60,000x1 would become 60,000 times the crop
FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "lanczos": Image.Resampling.LANCZOS,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """What happens to an image before the model sees it: resize, centre crop, rescale, normalise.

    Frozen, hashable and picklable. Calling it gives float32 pixels: (x·rescale_factor − mean) / std.
    """

    image_size: tuple[int, int]  # (height, width) of the result, pixels
    mean: tuple[float, float, float]  # per channel, of rescaled pixels
    std: tuple[float, float, float]
    resize: str = "exact"  # "exact": to resize_size; "cover": smallest of the same shape that covers it; "none"
    resize_size: tuple[int, int] | None = None  # (height, width) before the crop; None: image_size
    interpolation: str = "bicubic"  # a key of FILTERS
    rescale_factor: float = 1 / 255
    crop_fraction: float | None = None  # timm's crop_pct, where the source has one: only for `with_image_size`

    def __post_init__(self):
        if self.interpolation not in FILTERS:
            raise InputError(
                f"interpolation: found {self.interpolation!r}, expected one of {', '.join(FILTERS)}; correct it"
            )
        if self.resize_size is None:
            object.__setattr__(self, "resize_size", self.image_size)
        if max(self.resize_size) > configs.LARGEST_SIDE:
            height, width = self.resize_size
            found = f"found {height}x{width}, expected at most {configs.LARGEST_SIDE} a side"
            raise InputError(f"resize_size, before the crop: {found}; take a smaller image size, or crop less")

    @classmethod
    def from_huggingface(cls, config: dict, preprocessor: dict | None) -> "Preprocessing":
        """From a checkpoint's config.json and preprocessor_config.json (None: the family's usual evaluation).

        Read as transformers reads it, its class defaults included, with two deviations: a crop that the file
        does not mention is left out where the resize alone gives the model's image_size (DeiT's default would
        pad to 224), and a crop without a size is the model's image_size, not always 224.

        Raises:
          InputError: an unknown processor type or an unusable field, named in one line.
        """
        return cls(**configs.from_huggingface(config, preprocessor))

    @classmethod
    def from_timm(cls, pretrained_cfg: dict) -> "Preprocessing":
        """From the `pretrained_cfg` of timm's config.json: timm's own evaluation transform.

        Raises:
          InputError: an unusable field, named in one line.
        """
        return cls(**configs.from_timm(pretrained_cfg))

    def with_image_size(self, height: int, width: int) -> "Preprocessing":
        """The same preprocessing for another resolution; the size before the crop scales in proportion."""

        def scaled(old, before, new):
            return int(new / self.crop_fraction) if self.crop_fraction else max(1, before * new // old)

        before = tuple(map(scaled, self.image_size, self.resize_size, (height, width)))
        return dataclasses.replace(self, image_size=(height, width), resize_size=before)

    def __call__(self, images) -> np.ndarray:
        """Raw images -> normalised float32 pixels [n, h, w, 3].

        Args:
          images: uint8 [n,h,w,3], [n,h,w,1], [n,h,w], or one image [h,w,3], [h,w,1] (three axes of which the
            last has 1 or 3 entries are one image); or a PIL image; or a list of PIL images and uint8 arrays
            [h,w], [h,w,1], [h,w,3]. Grey is repeated to three channels; PIL modes: `images.to_rgb`.
        Raises:
          InputError: another type or shape, or images of the wrong size where nothing resizes.
        """
        return self.normalize(self.fit(images))

    def fit(self, images) -> np.ndarray:
        """The first half of a call: resize and crop, uint8 [n, h, w, 3]. Takes what a call takes."""
        images = pictures.as_list_or_stack(images)
        if isinstance(images, np.ndarray) and self._keeps(images.shape[1:3]):
            return pictures.to_three_channels(self._cropped(images))
        return np.stack([self._fit_one(image) for image in images]) if len(images) else self._empty()

    def normalize(self, images: np.ndarray) -> np.ndarray:
        """The second half of a call: uint8 [..., 3] -> normalised float32 [..., 3]."""
        table = _table(self.mean, self.std, self.rescale_factor)
        pixels = np.empty(images.shape, np.float32)
        for channel in range(3):
            np.take(table[channel], images[..., channel], out=pixels[..., channel], mode="clip")
        return pixels

    def denormalize(self, pixels) -> np.ndarray:
        """Normalised pixels [..., 3] -> uint8 images, rounded and clipped: the inverse of `normalize`."""
        raw = np.asarray(pixels, np.float32) * np.float32(self.std) + np.float32(self.mean)
        return np.clip(np.rint(raw / np.float32(self.rescale_factor)), 0, 255).astype(np.uint8)

    @property
    def lower(self) -> np.ndarray:
        """Black in normalised space: float32 [3], −mean / std."""
        return _table(self.mean, self.std, self.rescale_factor)[:, 0].copy()

    @property
    def upper(self) -> np.ndarray:
        """White in normalised space: float32 [3], (255·rescale_factor − mean) / std."""
        return _table(self.mean, self.std, self.rescale_factor)[:, 255].copy()

    @property
    def pixel_range(self) -> tuple[float, float]:
        """Least and greatest normalised value of any pixel: known without data."""
        return float(self.lower.min()), float(self.upper.max())

    def _empty(self):
        return np.zeros((0, *self.image_size, 3), np.uint8)

    def _keeps(self, size) -> bool:
        """Whether resizing leaves an image of `size` (height, width) as it is."""
        return self.resize == "none" or self._resized(*size) == tuple(size)

    def _resized(self, height, width) -> tuple[int, int]:
        target_height, target_width = self.resize_size
        if self.resize == "exact":
            return self.resize_size
        if target_height == target_width:  # torchvision truncates the long side
            short, long = sorted((height, width))
            long = int(target_height * long / short)
            return (target_height, long) if height <= width else (long, target_width)
        ratio = min(height / target_height, width / target_width)  # timm rounds it
        return round(height / ratio), round(width / ratio)

    def _fit_one(self, image) -> np.ndarray:
        if isinstance(image, Image.Image):
            image = pictures.to_rgb(image)
            size = (image.height, image.width)
        else:
            size = image.shape[:2]
        if not self._keeps(size):
            if isinstance(image, np.ndarray):
                image = Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)
            height, width = self._resized(*size)
            if height * width > MOST_PIXELS:
                raise InputError(
                    f"image: found {size[0]}x{size[1]} pixels, which resizing makes {height}x{width}, expected at most "
                    f"{MOST_PIXELS} pixels; crop or remove it"
                )
            image = image.resize((width, height), FILTERS[self.interpolation])
        array = np.asarray(image)
        array = array[..., None] if array.ndim == 2 else array
        return pictures.to_three_channels(self._cropped(array[None]))[0]

    def _cropped(self, images) -> np.ndarray:
        return center_crop(images, self.image_size, as_timm=self.crop_fraction is not None)


def center_crop(images: np.ndarray, size: tuple[int, int], as_timm: bool = False) -> np.ndarray:
    """uint8 [n, H, W, c] -> [n, h, w, c], the odd pixel at the bottom and right, as transformers crops; or, as
    torchvision's CenterCrop and so timm does, where halves are rounded to even.

    Raises:
      InputError: the images are smaller than the crop.
    """
    height, width = images.shape[1:3]
    if height < size[0] or width < size[1]:
        raise InputError(
            f"images: found {height}x{width} pixels, expected at least {size[0]}x{size[1]} to crop from; "
            "give larger images or switch do_resize on in the preprocessor"
        )
    surplus = height - size[0], width - size[1]
    top, left = (round(n / 2) if as_timm else n // 2 for n in surplus)
    return images[:, top : top + size[0], left : left + size[1]]


@functools.lru_cache(maxsize=64)
def _table(mean, std, rescale_factor) -> np.ndarray:
    """Normalised bytes [3, 256]: rescaled in float64, the rest in float32, as transformers does."""
    rescaled = (np.arange(256, dtype=np.float64) * rescale_factor).astype(np.float32)
    return (rescaled - np.float32(mean)[:, None]) / np.float32(std)[:, None]
