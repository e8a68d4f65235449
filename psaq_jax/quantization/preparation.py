"""What recipe "default" makes of a model and its calibration images whatever the bits: once for all pairs of them.

Each part is made when it is first asked for, and kept.
"""

import dataclasses
import functools

import numpy as np

from psaq_jax.errors import InputError
from psaq_jax.models.model import Model
from psaq_jax.quantization import streaming
from psaq_jax.quantization.bases import in_bases
from psaq_jax.quantization.calibration import check_pixels
from psaq_jax.quantization.channel_folding import Bits, fold
from psaq_jax.quantization.importance import token_importance
from psaq_jax.quantization.output_moments import IMAGES, block_gradients
from psaq_jax.quantization.recipes import DefaultRecipe
from psaq_jax.quantization.rotation import rotated
from psaq_jax.quantization.segments import chain, parts_of
from psaq_jax.quantization.views import close_ups, with_plain_grounds


@dataclasses.dataclass(frozen=True, eq=False)
class Preparation:
    """Of a float model and images [n, height, width, 3] float32 normalised, with these options."""

    model: Model
    images: np.ndarray
    options: DefaultRecipe

    def at(self, weight_bits: int, activation_bits: int | None) -> "Preparation":
        """The preparation for these bits of activations, and of the layer's weights that have the fewest."""
        return self._in_bases if self.options.wants_bases(weight_bits, activation_bits) else self

    @functools.cached_property
    def _in_bases(self) -> "InBases":
        return InBases(self.model, self.images, self.options, self)

    @functools.cached_property
    def rotated(self) -> Model:
        return rotated(self.model, self.options)

    @functools.cached_property
    def folded(self) -> Model:
        """The same function with the kernels that the recipe rounds, at 4 bits and activations in floating point."""
        model, params, x = self.rotated, self.rotated.params, self.views
        for link in chain(model.module, params, model.image_shape):
            segment, part = link.segment, link.parameters(params)
            parts = parts_of(segment, part, x)
            part = fold(segment, parts, part, x, Bits(dict.fromkeys(parts.layers, 4), None), self.options)
            params = link.replaced(params, part)
            x = streaming.propagate_float(segment, part, x)[0]
        return dataclasses.replace(self.model, params=params)

    @functools.cached_property
    def views(self) -> np.ndarray:
        """The images and, unless that is switched off, each once more on a plain ground."""
        return with_plain_grounds(self.images, self.options.seed) if self.options.plain_grounds else self.images

    @functools.cached_property
    def close_ups(self) -> np.ndarray | None:
        return close_ups(self.images, self.options.seed) if self.options.close_ups else None

    @functools.cached_property
    def importance(self) -> dict[str, np.ndarray]:
        """`token_importance` of the views."""
        return token_importance(self.rotated, self.views, self.options.seed)

    @functools.cached_property
    def some(self) -> np.ndarray:
        """Which of the views `gradients` are of."""
        return np.unique(np.linspace(0, len(self.views) - 1, IMAGES).astype(int))

    @functools.cached_property
    def gradients(self) -> dict[str, np.ndarray]:
        """`block_gradients` of some of the views."""
        return block_gradients(self.rotated, self.views[self.some], self.options.seed)


@dataclasses.dataclass(frozen=True, eq=False)
class InBases(Preparation):
    """The same of the model in other bases (`bases`)."""

    before: Preparation  # the images' views are the same

    @functools.cached_property
    def rotated(self) -> Model:
        return in_bases(self.before.rotated, self.views[self.some], self.options)

    @property
    def views(self) -> np.ndarray:
        return self.before.views

    @property
    def close_ups(self) -> np.ndarray | None:
        return self.before.close_ups


def as_rounded(
    model: Model, images, options: DefaultRecipe | None, weight_bits: int, activation_bits: int | None
) -> Model:
    """The float model in the bases that a quantized model of these images and bits (`Preparation.at`) has its kernels
    in, not folded; the model itself of recipe "paper", whose options are None.
    """
    return model if options is None else prepare(model, images, options).at(weight_bits, activation_bits).rotated


def prepare(model: Model, images, options: DefaultRecipe) -> Preparation:
    """The preparation of calibration pixels, or `images` itself where it is one.

    Raises:
      InputError: images of another shape, or a preparation of another model or other options.
    """
    if not isinstance(images, Preparation):
        return Preparation(model, check_pixels(model, images), options)
    if images.model is not model or images.options != options:
        raise InputError("images are a preparation of another model or options, expected one of these; make it anew")
    return images
