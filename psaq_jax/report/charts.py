"""Geometry of the page's line charts: numbers in, SVG coordinates and tick labels out; the template draws."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

WIDTH, HEIGHT = 360, 210  # of the whole chart in SVG units, about CSS pixels where it fills a column
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 10, 34  # margins for the tick labels
MOST_POINTS = 800


class Chart(NamedTuple):
    """A line chart, ready to draw.

    Attributes:
      title, x_label: texts, escaped by the template.
      x_ticks, y_ticks: (position in SVG units, label).
      lines: (name of the series, its SVG path).
    """

    title: str
    x_label: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    lines: list[tuple[str, str]]


def line_chart(
    title: str, series: Mapping[str, tuple[np.ndarray, np.ndarray]], x_label: str, from_zero: bool = False
) -> Chart | None:
    """A chart of {name: (x, y)}, both axes to scale; None where no series has a finite point.

    Long series are thinned to 800 points by leaving points out, not by averaging; infinite and NaN values
    break the line. `from_zero` starts the y axis at zero.
    """
    lines = {name: _thinned(np.asarray(x, float), np.asarray(y, float)) for name, (x, y) in series.items()}
    finite = [(x[np.isfinite(y)], y[np.isfinite(y)]) for x, y in lines.values()]
    if not any(len(y) for _, y in finite):
        return None
    x_span = _span(np.concatenate([x for x, _ in finite]))
    y_values = np.concatenate([y for _, y in finite])
    y_span = _span(np.append(y_values, 0.0) if from_zero else y_values)
    x_scale = (LEFT, WIDTH - RIGHT)
    y_scale = (HEIGHT - BOTTOM, TOP)
    return Chart(
        title=title,
        x_label=x_label,
        x_ticks=[(_place(v, x_span, x_scale), text) for v, text in ticks(*x_span, most=6)],
        y_ticks=[(_place(v, y_span, y_scale), text) for v, text in ticks(*y_span, most=5)],
        lines=[(n, _path(_place(x, x_span, x_scale), _place(y, y_span, y_scale))) for n, (x, y) in lines.items()],
    )


def ticks(least: float, greatest: float, most: int) -> list[tuple[float, str]]:
    """At most `most` + 1 round values, 1, 2 or 5 times a power of ten apart, between the bounds; labelled."""
    raw = (greatest - least) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * (1 - 1e-9))
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    first, last = math.ceil(least / step - 1e-9), math.floor(greatest / step + 1e-9)
    largest = max(abs(least), abs(greatest))
    digits = max(1, math.floor(math.log10(largest)) - math.floor(math.log10(step) + 1e-9))  # that tell two apart
    large = largest >= 1e5 or decimals > 4

    def label(value):
        text = f"{value:.{digits}e}" if large else f"{value:.{decimals}f}"
        return (text if float(text) else text.lstrip("-")).replace("-", "−")

    return [(i * step, label(i * step)) for i in range(first, last + 1)]


def _span(values) -> tuple[float, float]:
    least, greatest = float(values.min()), float(values.max())
    if greatest - least <= 1e-9 * max(abs(least), abs(greatest), 1e-9):
        margin = 0.5 * max(abs(least), 1e-3)
        return least - margin, greatest + margin
    return least, greatest


def _place(values, span, scale):
    return scale[0] + (values - span[0]) / (span[1] - span[0]) * (scale[1] - scale[0])


def _thinned(x, y):
    stride = -(-len(y) // MOST_POINTS) or 1
    return x[::stride], y[::stride]


def _path(x, y) -> str:
    """SVG path through the points, lifted over values that are not finite."""
    parts, drawing = [], False
    for a, b in zip(x, y, strict=True):
        if not math.isfinite(b):
            drawing = False
            continue
        parts.append(f"{'L' if drawing else 'M'}{a:.1f} {b:.1f}")
        drawing = True
    if len(parts) == 1:  # a single point shows as a dot: the lines have round ends
        parts.append("h0.1")
    return "".join(parts)
