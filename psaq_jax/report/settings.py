"""The runs of results.json gathered into settings, with their spread over seeds."""

import statistics
from typing import NamedTuple

CARD = {
    "top1": ("top-1 (%)", ".2f"), "top5": ("top-5 (%)", ".2f"), "loss": ("cross-entropy (nats)", ".4f"),
    "agreement": ("same top-1 as the float model (%)", ".2f"),
}  # fmt: skip
MEASURED = ("top1", "top5", "loss", "agreement", "integer_share", "synthesis_seconds", "quantization_seconds")


class Spread(NamedTuple):
    """A figure over seeds.

    Attributes:
      mean: over the runs that have the figure.
      deviation: sample standard deviation (n − 1); None for a single run.
      values: the figure of every run, in the order of the runs.
    """

    mean: float
    deviation: float | None
    values: tuple[float, ...]

    def text(self, decimals: int = 2) -> str:
        """ "88.10", or "88.10 ± 0.42" where several runs give a deviation."""
        spread = "" if self.deviation is None else f" ± {self.deviation:.{decimals}f}"
        return f"{self.mean:.{decimals}f}{spread}"


def cell(value: Spread | None, decimals: int = 2) -> str:
    """A figure over seeds as tables have it: "-" where there is none."""
    return "-" if value is None else value.text(decimals)


class Setting(NamedTuple):
    """All runs of one recipe, pair of bit-widths and calibration set, whatever their seeds.

    Percentages are 0 to 100, `loss` is in nats. A figure is None where no run has it (no labels).
    """

    recipe: str
    bits: str
    calibration: str
    seeds: tuple[int, ...]
    top1: Spread | None
    top5: Spread | None
    loss: Spread | None
    agreement: Spread | None
    lost: Spread | None  # points of top-1 below the float model; negative where the quantized model is better
    integer_share: Spread | None  # percent of all multiply-adds that can run in integers; of sweeps alone
    synthesis_seconds: Spread | None  # wall time; None where no images were made, or nobody took the time
    quantization_seconds: Spread | None


def settings(results: dict) -> list[Setting]:
    """The settings of `results["runs"]`, in the order in which they first appear."""
    groups: dict[tuple[str, str, str], list[dict]] = {}
    for run in results.get("runs") or ():
        key = (str(run.get("recipe", "")), str(run.get("bits", "")), str(run.get("calibration", "")))
        groups.setdefault(key, []).append(run)
    base = (results.get("float") or {}).get("top1")
    return [_setting(key, runs, base) for key, runs in groups.items()]


def image_count(results: dict) -> int | None:
    """How many images the figures are of; None where the results don't tell."""
    return (results.get("evaluated_on") or {}).get("images") or (results.get("float") or {}).get("examples")


def images_text(results: dict) -> str:
    """The images that the figures are of: their number, and what they are where they are no data; "" for unknown."""
    count, kind = image_count(results), (results.get("evaluated_on") or {}).get("kind")
    if not count:
        return ""
    return f"{count:,} synthesized images that no calibration saw" if kind == "synthesized" else f"{count:,} images"


def calibration_text(results: dict, calibration: str) -> str:
    """The images of a calibration set: their number as far as it is known, and whether figures are of these too."""
    of = (results.get("calibrated_on") or {}).get(calibration) or {}
    count = f"{of['images']:,} " if of.get("images") else ""
    return f"{count}{calibration} images" + (", of those measured on" if of.get("evaluated") else "")


def card_figures(results: dict, run: dict, data: str) -> dict[str, str]:
    """What a model card says of one run, with units and beside the float model: {what: figure}.

    Args:
      data: spec of the data set that the figures are of; "" without one.
    """
    base = results.get("float") or {}
    rows = {
        "calibrated on": calibration_text(results, run["calibration"]),
        "measured on": images_text(results) + (f" of {data}" if data else ""),
    }
    for name, (title, form) in CARD.items():
        if run.get(name) is not None:
            beside = f" (float model: {base[name]:{form}})" if name in base else ""
            rows[title] = f"{run[name]:{form}}{beside}"
    return rows


def spread(values) -> Spread | None:
    """Mean and deviation of the values that are not None; None where nothing is left."""
    values = tuple(float(value) for value in values if value is not None)
    if not values:
        return None
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, values)


def _setting(key, runs, base) -> Setting:
    figures = {name: spread(run.get(name) for run in runs) for name in MEASURED}
    lost = None
    if base is not None and figures["top1"]:
        lost = spread(base - value for value in figures["top1"].values)
    seeds = tuple(dict.fromkeys(run["seed"] for run in runs if run.get("seed") is not None))
    return Setting(*key, seeds=seeds, lost=lost, **figures)
