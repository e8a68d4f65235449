"""Results as text: the table at the end of the console output, and the same in Markdown."""

from psaq_jax.report.settings import Setting, cell, images_text, settings
from psaq_jax.text_tables import Table, one_line

BOLD, DIM, GREEN, YELLOW, RED, PLAIN = "\033[1m", "\033[2m", "\033[32m", "\033[33m", "\033[31m", "\033[0m"


def results_table(results: dict, color: bool = False) -> str:
    """The table that a person reads at the end of a run, in plain text.

    A title, the float model's row, then one row per (recipe, bits, calibration) in the order of the runs:
    top-1 in percent, points lost against the float model, agreement with it in percent. Several seeds give
    mean ± sample standard deviation. Columns that no row has a figure for are left out: without labels
    agreement stands alone.

    Args:
      results: as in results.json; `top1`, `top5` and `agreement` are percentages from 0 to 100.
      color: whether to use ANSI colours (points lost: up to 1 green, up to 5 yellow, else red).
    Returns:
      Lines joined by newlines, without one at the end; characters that move the cursor are replaced.
    """
    table = _table(results)
    head, rule, *rest = table.plain().split("\n")
    lines = [table.title, "", head, rule, *rest]
    if color:
        shades = [BOLD] * bool(results.get("float")) + [_shade(s) for s in settings(results)]
        lines = [
            f"{BOLD}{lines[0]}{PLAIN}", "", f"{DIM}{head}{PLAIN}", f"{DIM}{rule}{PLAIN}",
            *(f"{shade}{text}{PLAIN}" for shade, text in zip(shades, rest, strict=True)),
        ]  # fmt: skip
    return "\n".join(lines)


def markdown_table(results: dict) -> str:
    """The rows of `results_table` as a Markdown table, for a README or a model card; cells are escaped."""
    return _table(results).markdown()


def title(results: dict) -> str:
    """One line that says what was measured: model, recipe (where there is but one), images, seeds."""
    found = settings(results)
    recipes = list(dict.fromkeys(s.recipe for s in found))
    seeds = sorted({seed for s in found for seed in s.seeds})
    parts = [one_line(results.get("model") or "model")]
    if len(recipes) == 1 and recipes[0]:
        parts.append(f"recipe {one_line(recipes[0])}")
    parts.append(images_text(results) or "no labelled images")
    if len(seeds) > 1:
        parts.append(f"{len(seeds)} seeds, mean ± standard deviation")
    return " · ".join(parts)


def _table(results) -> Table:
    """Without the columns that nothing fills."""
    found, base = settings(results), results.get("float") or {}
    several = len({s.recipe for s in found}) > 1
    columns = ["recipe"] * several + ["bits", "calibration"]
    figures = {"top-1 %": "top1", "points lost": "lost", "agreement %": "agreement"}
    shown = {name: field for name, field in figures.items() if any(getattr(s, field) for s in found)}
    if base.get("top1") is not None:
        shown = {"top-1 %": "top1", **shown}
    rows, before = [], None
    if base:
        rows.append([""] * several + ["float", ""] + [_float_cell(base, field) for field in shown.values()])
    for s in found:
        # A pair of bit-widths is written once, above the calibrations that share it.
        group = (s.recipe, s.bits)
        names = [one_line(s.recipe)] * several + [one_line(s.bits)]
        names = names if group != before else [""] * len(names)
        before = group
        rows.append([*names, one_line(s.calibration), *(cell(getattr(s, field)) for field in shown.values())])
    return Table(title(results), [*columns, *shown], rows, len(columns))


def _float_cell(base, field) -> str:
    return f"{base['top1']:.2f}" if field == "top1" and base.get("top1") is not None else ""


def _shade(setting: Setting) -> str:
    if setting.lost is None:
        return ""
    return GREEN if setting.lost.mean <= 1 else YELLOW if setting.lost.mean <= 5 else RED
