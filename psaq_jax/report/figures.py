"""Figures that runs write beside their results, as PNG: loss curves, the similarity picture, accuracy curves.

Drawn by matplotlib's objects alone, without pyplot and without global state. Colours are of the Okabe-Ito
palette, told apart by people with any colour vision.
"""

import io
from collections.abc import Mapping

import numpy as np

from psaq_jax.errors import InputError
from psaq_jax.extras import require
from psaq_jax.models.model import Model
from psaq_jax.report import similarity
from psaq_jax.report.settings import Setting, settings

COLORS = {"synthesized": "#0072b2", "noise": "#d55e00", "real": "#009e73"}
TERM_TITLES = {
    "loss": "loss (weighted sum of the terms)",
    "entropy": "patch-similarity entropy, negative",
    "cross_entropy": "cross-entropy",
    "total_variation": "total variation, distance from target",
    "discrepancy": "discrepancy of the outputs",
    "features": "discrepancy of the blocks' outputs",
}
LINES = (*COLORS.values(), "#cc79a7", "#e69f00")
STYLES = ("solid", "dashed", "dotted", "dashdot")
MARKERS = ("o", "s", "^", "D")
FIGURES = {"lost": "points of top-1 lost", "agreement": "agreement with float, %"}
DPI = 150


def term_title(name: str) -> str:
    """What stands over a term's curve; "student/loss" is the student's."""
    whose, _, term = name.rpartition("/")
    return f"{whose}: {TERM_TITLES.get(term, term)}".removeprefix(": ")


def loss_curves(history: Mapping[str, np.ndarray]) -> bytes:
    """Every term of the synthesis loss over the iterations, a panel each, as PNG.

    Args:
      history: {term: [iterations]}, as `SynthesisResult.history`; terms without values are left out.
    Raises:
      InputError: no term has a value, or matplotlib is missing.
    """
    terms = {name: np.asarray(values, float) for name, values in history.items() if len(values)}
    if not terms:
        raise InputError("loss curves: the history is empty, expected at least one iteration of synthesis")
    columns = min(2, len(terms))
    rows = -(-len(terms) // columns)
    figure = _new(9, 2.9 * rows)
    for i, (name, values) in enumerate(terms.items()):
        axes = figure.add_subplot(rows, columns, i + 1)
        axes.plot(np.arange(1, len(values) + 1), values, color=COLORS["synthesized"], linewidth=1.4)
        if len(values) == 1:
            axes.plot([1], values, "o", color=COLORS["synthesized"])
        axes.set_title(term_title(name).replace("$", r"\$"), fontsize=11, loc="left")
        axes.set_xlabel("iteration")
        _plain(axes)
    return _png(figure)


def similarity_figure(model: Model, images: Mapping[str, np.ndarray | None], layer: str | int | None = None) -> bytes:
    """Patch similarities of one layer for each kind of image, side by side, as in the paper's first figure.

    Their densities stand below. The maps share one colour scale, from the least similarity among them to 1.

    Args:
      images: {"synthesized", "noise", "real": [h, w, 3] normalised, or None where there is none}; any kinds.
      layer: its name or index; None: three quarters of the way through the network. The title says which.
    Raises:
      InputError: no image, an unknown layer, or matplotlib is missing.
    """
    images = {kind: image for kind, image in images.items() if image is not None}
    if not images:
        raise InputError("similarity figure: found no image, expected one of synthesized, noise, real")
    layer = similarity.choose_layer(model, layer)
    found = {kind: similarity.similarities(model, image)[layer] for kind, image in images.items()}
    figure = _new(max(7.5, 3.1 * len(images)), 7.6)
    figure.suptitle(f"Patch similarities of {similarity.position(model, layer)}", fontsize=13)
    top, bottom = figure.subfigures(2, 1, height_ratios=(5, 3))
    panels = top.subplots(2, len(images), squeeze=False, height_ratios=(1, 2.4))
    least = min(float(values.min()) for values in found.values())
    for column, (kind, image) in enumerate(images.items()):
        panels[0, column].imshow(model.preprocessing.denormalize(image), interpolation="nearest")
        panels[0, column].set_title(kind, fontsize=11)
        drawn = panels[1, column].imshow(
            similarity.mosaic(found[kind]), vmin=least, vmax=1, cmap="viridis", interpolation="nearest"
        )
        for axes in panels[:, column]:
            axes.set_axis_off()
    top.colorbar(drawn, ax=panels.ravel().tolist(), shrink=0.8, label="cosine similarity")
    _draw_densities(bottom.subplots(), similarity.densities(found))
    return _png(figure)


def _draw_densities(axes, densities) -> None:
    for kind, density in densities.items():
        axes.plot(density.grid, density.values, label=kind, color=COLORS.get(kind), linewidth=1.6)
        axes.fill_between(density.grid, density.values, color=COLORS.get(kind), alpha=0.12, linewidth=0)
    axes.set_xlabel("cosine similarity of two patches")
    axes.set_ylabel("density")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    _plain(axes)


def accuracy_curves(results: Mapping[float, Mapping[int, dict]]) -> bytes:
    """What the iterations of the synthesis buy, a column of panels for each pair of bit-widths, as PNG. Without data
    there is no row of top-1.

    Args:
      results: {bandwidth: {iterations: results of one model}}, a kind of line a bandwidth; runs on other images than
        synthesized ones are left out.
    Raises:
      InputError: no run was calibrated on synthesized images, or matplotlib is missing.
    """
    lines: dict[tuple[str, str, float], dict[int, Setting]] = {}  # (bits, recipe, bandwidth) -> {iterations: setting}
    for bandwidth in sorted(results):
        for iterations in sorted(results[bandwidth]):
            for setting in settings(results[bandwidth][iterations]):
                if setting.calibration == "synthesized":
                    lines.setdefault((setting.bits, setting.recipe, bandwidth), {})[iterations] = setting
    if not lines:
        raise InputError("accuracy curves: no run was calibrated on synthesized images, expected at least one")
    shown = {k: v for k, v in FIGURES.items() if any(getattr(s, k) for found in lines.values() for s in found.values())}
    bits, recipes, bandwidths = (list(dict.fromkeys(key[i] for key in lines)) for i in (0, 1, 2))
    figure = _new(max(5, 3.1 * len(bits)), 2.8 * len(shown))
    panels = figure.subplots(len(shown), len(bits), squeeze=False, sharex=True)
    for (name, recipe, bandwidth), found in lines.items():
        (again, color), style = divmod(recipes.index(recipe), len(LINES)), bandwidths.index(bandwidth) % len(STYLES)
        label = f"{recipe}, bandwidth {bandwidth:g}" if len(bandwidths) > 1 else recipe
        for axes, field in zip(panels[:, bits.index(name)], shown, strict=True):
            spreads = {n: value for n, s in found.items() if (value := getattr(s, field))}
            axes.errorbar(
                list(spreads), [s.mean for s in spreads.values()], [s.deviation or 0 for s in spreads.values()],
                label=label, color=LINES[color], linestyle=STYLES[style], linewidth=1.6,
                marker=MARKERS[again % len(MARKERS)], capsize=3,
            )  # fmt: skip
    for column, name in enumerate(bits):
        panels[0, column].set_title(name, fontsize=11, loc="left")
        panels[-1, column].set_xlabel("iterations")
    ticks = sorted({iterations for found in results.values() for iterations in found})
    for row, title in zip(panels, shown.values(), strict=True):
        row[0].set_ylabel(title)
        for axes in row:
            axes.set_xscale("log")
            axes.set_xticks(ticks, [str(n) for n in ticks], minor=False)
            axes.minorticks_off()
            _plain(axes)
    columns = min(max(2, len(bits)), 4)  # as many as the panels' width holds
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=columns, frameon=False)
    return _png(figure)


def _new(width: float, height: float):
    """An empty figure of so many inches."""
    return require("matplotlib.figure", "report").Figure(figsize=(width, height), layout="constrained")


def _plain(axes) -> None:
    """No frame above and to the right, a faint grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9)


def _png(figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()
