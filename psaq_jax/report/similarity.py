"""Patch similarities of a model's layers for one image, as matrices and as densities.

Shapes: w windows (1 for models without windows), p patches of a window, g grid points.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from psaq_jax.errors import InputError
from psaq_jax.models.model import Model, check_float_model, check_floats, exact_products
from psaq_jax.sites import record
from psaq_jax.synthesis.balancing import balanced
from psaq_jax.synthesis.entropy import BANDWIDTH, patch_similarity

SITE = "attention_output"
GRID_STEP = BANDWIDTH / 5
MOST = 512  # rows of a matrix that is shown, or about so many


class Density(NamedTuple):
    """A density curve: `values` [g] at the similarities `grid` [g]."""

    grid: np.ndarray
    values: np.ndarray


def layers(model: Model) -> list[str]:
    """Names of the layers that have patch similarities, in running order, such as "block_0/attention"."""
    return [name.removesuffix("/" + SITE) for name in model.sites if name.rpartition("/")[2] == SITE]


def similarities(model: Model, image) -> dict[str, np.ndarray]:
    """Patch similarities of every layer for one image.

    Args:
      image: [height, width, 3] normalised pixels.
    Returns:
      {layer name: [w, p, p] float32} in running order; special tokens are left out, all of them, and values are
      balanced (`synthesis/balancing.py`), whatever the recipe of the images.
    Raises:
      InputError: no float model, an image of another shape, or whole numbers, which are not normalised.
    """
    check_float_model(model, "similarities")
    image = jnp.asarray(check_floats(image), jnp.float32)
    if image.shape != model.image_shape:
        raise InputError(f"image: found shape {list(image.shape)}, expected one of {list(model.image_shape)}")
    found = _similarities(balanced(model), image[None])
    return {name: np.asarray(values) for name, values in zip(layers(model), found, strict=True)}


@jax.jit
def _similarities(model, pixels):
    with exact_products(model.module.dtype):
        _, attention = record(model.module, model.params, pixels, f"*/{SITE}")
    return [patch_similarity(a, getattr(model.module, "special_tokens", 0)) for a in attention.values()]


def default_layer(names: list[str]) -> str:
    """The layer shown where none is asked for: three quarters of the way through the network."""
    return names[round(0.75 * (len(names) - 1))]


def choose_layer(model: Model, layer: str | int | None) -> str:
    """A layer by its name ("block_4" will do for "block_4/attention") or its index; None: `default_layer`.

    Raises:
      InputError: there is no such layer; the message names those there are.
    """
    names = layers(model)
    if layer is None:
        return default_layer(names)
    if isinstance(layer, int) and -len(names) <= layer < len(names):
        return names[layer]
    matches = [name for name in names if name == layer or name == f"{layer}/attention"]
    if not matches:
        raise InputError(f"layer: found {layer!r}, expected an index or one of {', '.join(names)}")
    return matches[0]


def short_name(layer: str) -> str:
    """ "block_4/attention" as people say it: "block_4"."""
    return layer.removesuffix("/attention")


def position(model: Model, layer: str) -> str:
    """ "block_4 (layer 5 of 6)"."""
    names = layers(model)
    return f"{short_name(layer)} (layer {names.index(layer) + 1} of {len(names)})"


def mosaic(similarity: np.ndarray) -> np.ndarray:
    """[w, p, p] -> one matrix: windows side by side, as near to a square as their number allows. What has more than
    about MOST rows is shown as means of squares.
    """
    w, p, _ = similarity.shape
    step = -(-p * int(w**0.5) // MOST)
    if step > 1:
        at = np.arange(0, p, step)
        sums = np.add.reduceat(np.add.reduceat(similarity, at, axis=1), at, axis=2)
        counts = np.diff(np.append(at, p))
        similarity, p = sums / (counts[:, None] * counts), len(at)
    rows = max(n for n in range(1, int(w**0.5) + 1) if w % n == 0)
    return similarity.reshape(rows, w // rows, p, p).transpose(0, 2, 1, 3).reshape(rows * p, -1)


def densities(by_kind: Mapping[str, np.ndarray]) -> dict[str, Density]:
    """Gaussian kernel density (the paper's bandwidth, 0.01) of each kind's similarities, all on one grid.

    The diagonal is included, as in the paper. Entries are binned to a fifth of the bandwidth first, so that
    the cost does not grow with patches times grid points.
    """
    least = min(float(values.min()) for values in by_kind.values()) - 3 * BANDWIDTH
    edges = np.arange(least, 1 + 4 * BANDWIDTH, GRID_STEP)
    reach = np.arange(-20, 21) * GRID_STEP
    kernel = np.exp(-0.5 * (reach / BANDWIDTH) ** 2) / (BANDWIDTH * np.sqrt(2 * np.pi))
    grid = (edges[1:] + edges[:-1]) / 2
    found = {}
    for kind, values in by_kind.items():
        share = np.histogram(values, bins=edges)[0] / values.size
        found[kind] = Density(grid, np.convolve(np.pad(share, 20), kernel, mode="valid"))
    return found
