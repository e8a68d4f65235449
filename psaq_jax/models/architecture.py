"""`Architecture`: what a config.json describes, and the checks that hold for every family."""

import dataclasses

import flax.linen as nn

from psaq_jax.errors import InputError
from psaq_jax.models.fields import LARGEST_WINDOW
from psaq_jax.models.names import Table
from psaq_jax.models.swin import SwinTransformer


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What a config.json describes: `module` at the resolution of the weights, and where its tensors are."""

    module: nn.Module
    table: Table
    prefix: str  # what the name table's "{prefix}" stands for
    labels: tuple[str, ...]  # in the order of the logits
    resizable: bool  # whether its own library runs it at any resolution (DINOv2, Swin, timm's dynamic_img_size)
    antialias: bool = False  # whether it filters position embeddings for another grid (timm, DINOv2 with registers)


def check_geometry(module: nn.Module, where: str) -> None:
    """Heads that divide the width, patches that fit the image, windows of a size that can be held.

    Raises:
      InputError: naming what doesn't fit.
    """
    if isinstance(module, SwinTransformer):
        _check_swin(module, where)
        stages = list(zip(module.widths, module.heads, strict=True))
    else:
        stages = [(module.width, module.heads)]
    for width, heads in stages:
        if width % heads:
            raise InputError(f"{where} has width {width} and {heads} heads; the heads must divide the width")
    if any(p > i for p, i in zip(module.patch_size, module.image_size, strict=True)):
        raise InputError(
            f"{where} has image size {list(module.image_size)} and patch size {list(module.patch_size)}; "
            "a patch must not be larger than the image"
        )


def _check_swin(module: SwinTransformer, where: str) -> None:
    largest = max(max(module.window_size(stage)) for stage in range(len(module.depths)))
    if largest > LARGEST_WINDOW:
        raise InputError(f"{where} has windows of {largest} patches, expected at most {LARGEST_WINDOW}")
