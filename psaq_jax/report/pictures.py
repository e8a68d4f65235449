"""The page's pictures: images as data addresses, similarity maps with their densities, loss curves."""

import base64
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from PIL import Image

from psaq_jax.extras import require
from psaq_jax.models.model import Model
from psaq_jax.report import images, similarity
from psaq_jax.report.charts import Chart, line_chart
from psaq_jax.report.figures import term_title

SHOWN = 12  # images of a kind
LONGEST_SIDE = 160  # pixels of an image in the page, so that a page of large images stays small


class Picture(NamedTuple):
    """An image of the page: its data: address, its caption, whether its pixels stay square when enlarged."""

    address: str
    caption: str
    small: bool


class Layer(NamedTuple):
    """Patch similarities of one layer: a map for each kind of image, and their densities in one chart."""

    name: str
    maps: list[tuple[str, Picture]]
    densities: Chart | None


def data_address(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def gallery(model: Model, pixels, captions=None) -> list[Picture]:
    """The first images of normalised pixels [n, h, w, 3], at most 12, de-normalised."""
    shown = model.preprocessing.denormalize(np.asarray(pixels)[:SHOWN])
    captions = [""] * len(shown) if captions is None else list(captions)
    small = max(shown.shape[1:3]) <= LONGEST_SIDE / 2
    return [
        Picture(data_address(images.to_png(image, LONGEST_SIDE)), str(caption), small)
        for image, caption in zip(shown, captions, strict=False)
    ]


def loss_charts(history: Mapping[str, np.ndarray] | None, x_label: str = "iteration") -> list[Chart]:
    """One chart for every term of the loss that has values."""
    charts = [
        line_chart(term_title(name), {"loss": (np.arange(1, len(v) + 1), v)}, x_label)
        for name, v in (history or {}).items()
        if len(v)
    ]
    return [chart for chart in charts if chart]


def similarity_layers(model: Model, kinds: Mapping[str, np.ndarray]) -> tuple[list[Layer], float]:
    """Every layer's similarities for one image of each kind; and the least, where all maps' colours start."""
    found = {kind: similarity.similarities(model, image) for kind, image in kinds.items()}
    least = min(float(values.min()) for by_layer in found.values() for values in by_layer.values())
    layers = []
    for name in similarity.layers(model):
        of_layer = {kind: by_layer[name] for kind, by_layer in found.items()}
        maps = [(kind, _map(values, least, f"{name}, {kind}")) for kind, values in of_layer.items()]
        curves = {kind: (d.grid, d.values) for kind, d in similarity.densities(of_layer).items()}
        chart = line_chart(similarity.short_name(name), curves, "cosine similarity", from_zero=True)
        layers.append(Layer(similarity.short_name(name), maps, chart))
    return layers, least


def color_stops() -> list[str]:
    """Colours of the similarity maps from least to greatest, as CSS."""
    return [f"rgb({r} {g} {b})" for r, g, b in _palette()[np.linspace(0, 255, 9).astype(int)]]


def _map(values: np.ndarray, least: float, caption: str) -> Picture:
    matrix = similarity.mosaic(values)
    codes = np.clip(np.rint((matrix - least) / max(1 - least, 1e-6) * 255), 0, 255).astype(np.uint8)
    picture = Image.fromarray(codes)
    picture.putpalette(_palette().tobytes())
    return Picture(data_address(images.encode(picture)), caption, True)


def _palette() -> np.ndarray:
    """viridis as uint8 [256, 3]."""
    return require("matplotlib", "report").colormaps["viridis"](np.arange(256), bytes=True)[:, :3]
