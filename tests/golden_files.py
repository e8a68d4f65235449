"""The reference numbers in tests/golden/, in our layout (NHWC, output channels last)."""

import pathlib

import numpy as np

from psaq_jax import Model, load_model

GOLDEN = pathlib.Path(__file__).parent / "golden"


def golden(name: str) -> dict[str, np.ndarray]:
    """An npz of tests/golden as a dictionary."""
    with np.load(GOLDEN / name) as archive:
        return dict(archive)


def reference_vit(depth: int) -> Model:
    """The reference ViT's first blocks, of three: what goes through the whole model compiles in proportion."""
    model = load_model(GOLDEN / "paper" / "vit")
    left_out = {f"block_{i}" for i in range(depth, model.module.depth)}
    params = {name: x for name, x in model.params.items() if name not in left_out}
    return model.replace(params=params, module=model.module.clone(depth=depth))


def nhwc(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(images, -3, -1))
