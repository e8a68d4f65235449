"""What a sweep leaves for people: one row per model, recipe, bits and calibration, mean and deviation over seeds."""

import csv
import io
import pathlib
from collections.abc import Iterable, Iterator

from psaq_jax import files
from psaq_jax.report.settings import Setting, cell, settings
from psaq_jax.text_tables import Table, one_line

SECONDS = ("synthesis_seconds", "quantization_seconds")
FIGURES = ("top1", "lost", "top5", "loss", "agreement", "integer_share", *SECONDS)
DECIMALS = {"loss": 4, "integer_share": 1} | dict.fromkeys(SECONDS, 1)
HEADER = (
    "model", "recipe", "bits", "calibration", "seeds", "top-1 %", "points lost", "top-5 %", "loss", "agreement %",
    "integer %", "synthesis s", "quantization s",
)  # fmt: skip
WORDS = 4  # columns of words


def rows(results: Iterable[dict]) -> Iterator[list[str]]:
    """The cells of the table that people read: per model the float model's row, then its settings."""
    for result in results:
        name, base = one_line(result["model"]), result["float"]
        if base:
            figures = [f"{base['top1']:.2f}", "", f"{base['top5']:.2f}", f"{base['loss']:.4f}", "", "", "", ""]
            yield [name, "", "float", "", "", *figures]
        for s in settings(result):
            figures = [cell(getattr(s, field), DECIMALS.get(field, 2)) for field in FIGURES]
            yield [name, s.recipe, s.bits, s.calibration, str(len(s.seeds)), *figures]


def table(results: Iterable[dict]) -> Table:
    return Table("Sweep", HEADER, list(rows(results)), WORDS)


def as_csv(results: Iterable[dict]) -> str:
    """One line per setting: its seeds, the float model's top-1, mean and sample standard deviation of every figure.

    Percentages are 0 to 100; a field is empty where there is no figure, a deviation also where there is one seed.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    named = [f"{field}_{part}" for field in FIGURES for part in ("mean", "std")]
    writer.writerow(["model", "recipe", "bits", "calibration", "seeds", "float_top1", *named])
    for result in results:
        base = (result["float"] or {}).get("top1")
        for s in settings(result):
            words = [result["model"], s.recipe, s.bits, s.calibration, " ".join(map(str, s.seeds)), base]
            writer.writerow([*words, *_numbers(s)])
    return text.getvalue()


def write(workdir: pathlib.Path, results: list[dict]) -> dict[str, pathlib.Path]:
    """Writes runs.json (every run, by model), sweep.csv and sweep.md; returns {what it is: path}."""
    return {
        "runs": files.write_json(workdir / "runs.json", results),
        "table": files.write_text(workdir / "sweep.csv", as_csv(results)),
        "Markdown": files.write_text(workdir / "sweep.md", table(results).markdown() + "\n"),
    }


def _numbers(setting: Setting) -> Iterator[float | None]:
    for field in FIGURES:
        value = getattr(setting, field)
        yield value.mean if value else None
        yield value.deviation if value else None
