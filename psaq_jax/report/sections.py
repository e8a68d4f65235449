"""The page's numbers, section by section, in the form in which the template shows them."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from flax import traverse_util

from psaq_jax.quantization.integer_plan import MatrixProduct
from psaq_jax.quantization.recipes import DefaultRecipe
from psaq_jax.report.sensitivity import Sensitivity, block_of
from psaq_jax.report.settings import settings

TOP = 12  # rows shown before "all of them"
KINDS = ("synthesized", "noise", "real")  # have colours of their own; other calibrations share a fourth


class Size(NamedTuple):
    """Bytes of a model's weights, and how many times smaller than float32 that is."""

    name: str
    text: str
    ratio: str


class Span(NamedTuple):
    """One range in a bar that all calibrations of a site share: positions in percent of the bar."""

    calibration: str
    left: float
    width: float


class SiteRanges(NamedTuple):
    site: str
    spans: list[Span]
    texts: dict[str, str]  # {calibration: "minimum … maximum"}
    zero: float | None  # percent; None where zero lies outside
    disagreement: float  # widest range of the site over its narrowest; infinite where one is empty


class Heat(NamedTuple):
    """A table of SQNR: a row for each kind of site or kernel, a column for each block."""

    title: str
    columns: list[str]
    rows: list[tuple[str, list[tuple[Sensitivity | None, float]]]]  # (name, cells: measurement, heat 0 to 1)


def answer(results: dict) -> dict:
    """Rows of the first table, and the tiles above it: float, then each pair of bits on one calibration."""
    found = settings(results)
    figures = {"top1", "top5", "loss", "agreement", "lost", "integer_share"}
    has = {field for field in figures if any(getattr(s, field) for s in found)}
    base = results.get("float") or None
    headline = {}
    for s in found:
        key = (s.recipe, s.bits)
        if key not in headline or s.calibration == "synthesized":
            headline[key] = s
    greatest = max([s.lost.mean for s in found if s.lost] + [1e-9])
    several = len({len(s.seeds) for s in found}) > 1 or any(len(s.seeds) > 1 for s in found)
    return {
        "settings": found,
        "float": base,
        "has": has,
        "headline": list(headline.values()),
        "recipes": list(dict.fromkeys(s.recipe for s in found)),
        "lost_scale": greatest,
        "seeds": sorted({seed for s in found for seed in s.seeds}),
        "several_seeds": several,
        "runs": results.get("runs") or [],
    }


def weight_sizes(params: dict, bits: Sequence[str], ends_at_8: bool = False) -> dict[str, int]:
    """Bytes of all parameters in float32 and for each pair of bits such as "w4a8": computed, not measured.

    Kernels take their bits (below 8 packed) and a float32 scale for each output channel, all else float32.

    Args:
      ends_at_8: the first and last layers' kernels have 8 bits.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    kernels = {path: v for path, v in flat.items() if path.rpartition("/")[2] == "kernel"}
    whole, inside = sum(v.size for v in flat.values()), sum(k.size for k in kernels.values())
    ends = DefaultRecipe(first_last_8bit=ends_at_8)
    at_8 = sum(k.size for path, k in kernels.items() if ends.bits(path.removesuffix("/kernel"), 2) == 8)
    sizes = {"float32": 4 * whole}
    for name in dict.fromkeys(bits):
        match = re.match(r"(?:w|auto:)([\d.]+)a", name)
        if match:
            rest = 4 * (whole - inside + sum(k.shape[-1] for k in kernels.values()))
            sizes[name] = at_8 + math.ceil((inside - at_8) * float(match[1]) / 8) + rest
    return sizes


def size_rows(sizes: Mapping[str, int] | None) -> list[Size]:
    """Sizes as texts; the first is what the others are compared with."""
    rows = list((sizes or {}).items())
    return [Size(name, bytes_text(n), f"{rows[0][1] / n:.1f}×" if i and n else "") for i, (name, n) in enumerate(rows)]


def bytes_text(count: float) -> str:
    """ "1.3 MB": powers of 1000, as people read file sizes."""
    for unit in ("B", "kB", "MB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 99.5 else f"{count:.2g} {unit}"
        count /= 1000
    return f"{count:.2g} GB" if count < 99.5 else f"{count:,.0f} GB"


def seconds_text(seconds: float) -> str:
    """ "0.04 s", "12.3 s", "3 min 05 s", "2 h 07 min"."""
    if seconds < 59.95:
        return f"{seconds:.3g} s" if seconds < 1 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def range_rows(ranges: Mapping[str, Mapping] | None) -> list[SiteRanges]:
    """{calibration: {site: (minimum, maximum)}} -> a row for each site, in running order."""
    by_site: dict[str, dict[str, tuple[float, float]]] = {}
    for calibration, of_sites in (ranges or {}).items():
        for site, (low, high) in of_sites.items():
            by_site.setdefault(site, {})[calibration] = (float(low), float(high))
    return [_site_ranges(site, found) for site, found in by_site.items()]


def _site_ranges(site, found) -> SiteRanges:
    least, greatest = min(low for low, _ in found.values()), max(high for _, high in found.values())
    whole = max(greatest - least, 1e-12)
    spans = [Span(name, 100 * (low - least) / whole, 100 * (high - low) / whole) for name, (low, high) in found.items()]
    texts = {name: f"{_short(low)} … {_short(high)}" for name, (low, high) in found.items()}
    widths = [high - low for low, high in found.values()]
    zero = 100 * (0 - least) / whole if least < 0 < greatest else None
    disagreement = max(widths) / min(widths) if min(widths) > 0 else float("inf")
    return SiteRanges(site, spans, texts, zero, disagreement)


def _short(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")


def worst_first(found: Sequence[Sensitivity] | None, kind: str) -> list[Sensitivity]:
    """Measurements of a kind, the lowest SQNR first."""
    return sorted((s for s in found or () if s.kind == kind), key=lambda s: (s.sqnr_db, s.agreement))


def heat_maps(found: Sequence[Sensitivity] | None) -> list[Heat]:
    """Activations and weights as tables of part by block; heat is 1 at the lowest SQNR, 0 at the highest."""
    inside = [s for s in found or () if s.kind in ("activations", "weights") and block_of(s.name)]
    if not inside:
        return []
    levels = [s.sqnr_db for s in inside]
    least, whole = min(levels), max(max(levels) - min(levels), 1e-9)
    columns = list(dict.fromkeys(block_of(s.name) for s in inside))
    maps = []
    for kind in ("activations", "weights"):
        cells = {(s.name[len(block_of(s.name)) + 1 :], block_of(s.name)): s for s in inside if s.kind == kind}
        parts = list(dict.fromkeys(part for part, _ in cells))
        rows = []
        for part in parts:
            row = [cells.get((part, block)) for block in columns]
            rows.append((part, [(s, 1 - (s.sqnr_db - least) / whole if s else 0.0) for s in row]))
        if rows:
            maps.append(Heat(kind, [re.sub(r"(stage|block)_", r"\1 ", c).replace("/", ", ") for c in columns], rows))
    return maps


def coverage_rows(products: Sequence[MatrixProduct]) -> list[dict]:
    """The products of `integer_plan.plan` as `render_page` takes them; share: percent of all multiply-adds."""
    whole = max(sum(product.multiply_adds for product in products), 1)
    return [
        {
            "name": product.name,
            "execution": "integer" if product.integer else "float",
            "reason": product.reason,
            "share": 100 * product.multiply_adds / whole,
        }
        for product in products
    ]


def pretty(config) -> str:
    """A configuration as indented JSON; what JSON lacks becomes text."""
    return json.dumps(config, indent=2, default=_plain, ensure_ascii=False)


def _plain(value):
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return str(value)
