"""Sweeps that differ in the iterations and the bandwidth of the synthesis: read, and in tables, for `launch.curve`."""

import json
import math
import os
import pathlib
from collections.abc import Mapping

from psaq_jax.errors import InputError, reading
from psaq_jax.report.settings import Setting, cell, images_text, settings
from psaq_jax.text_tables import Table

FIGURES = {"top1": "top-1", "agreement": "agreement with the float model"}


def read_sweeps(folder: pathlib.Path) -> dict[str, dict[float, dict[int, dict]]]:
    """{model: {bandwidth: {iterations: results}}} of every sweep below the folder; all else must be the same."""
    with reading(folder):
        names = os.listdir(folder) if folder.exists() else []
        paths = sorted(path for name in names if (path := folder / name / "runs.json").exists())
    found: dict[str, dict[float, dict[int, dict]]] = {}
    first, first_cells = None, None
    for path in paths:
        try:
            config, iterations, bandwidth, runs = _read_sweep(path)
            models, cells = [results["model"] for results in runs], _cells(runs)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise InputError(f"{path}: found no sweep's runs.json and config.json, remove the folder") from None
        first, first_cells = first or config, first_cells or cells
        if cells != first_cells:
            odd = ", ".join(map(str, min(cells ^ first_cells)))
            raise InputError(f"{path}: {odd} is there or in the other sweeps, not in both; run what is missing")
        if config != first:
            more = "differs from the other sweeps in more than synthesis.iterations and synthesis.bandwidth"
            raise InputError(f"{path}: {more}, remove it")
        for model, results in zip(models, runs, strict=True):
            line = found.setdefault(model, {}).setdefault(bandwidth, {})
            if iterations in line:
                more = f"a second sweep of {iterations} iterations and bandwidth {bandwidth}"
                raise InputError(f"{path}: {more}, remove one of their folders")
            line[iterations] = results
    if not found:
        raise InputError(f"{folder}: found no sweep (*/runs.json), expected those of configs/accuracy.py:iterations")
    return found


def tables(model: str, curves: Mapping[float, Mapping[int, dict]]) -> list[Table]:
    """Top-1 and agreement of one model of `read_sweeps`: a row a count of iterations, a column a pair of bit-widths."""
    cells: dict[tuple[str, ...], dict[str, Setting]] = {}
    for bandwidth in sorted(curves):
        for iterations, results in sorted(curves[bandwidth].items()):
            for s in settings(results):
                row = (s.recipe, s.calibration, f"{bandwidth:g}", f"{iterations:,}")
                cells.setdefault(row, {})[s.bits] = s
    recipes = list(dict.fromkeys(row[:2] for row in cells))
    order = sorted(cells, key=lambda row: recipes.index(row[:2]))  # all of a recipe and calibration together
    bits = list(dict.fromkeys(pair for row in order for pair in cells[row]))
    found = []
    for name, title in FIGURES.items():
        values = [[getattr(cells[row].get(pair), name, None) for pair in bits] for row in order]
        if any(map(any, values)):
            lines = [[*row, *map(cell, line)] for row, line in zip(order, values, strict=True)]
            header = ("recipe", "calibrated on", "bandwidth", "iterations", *bits)
            found.append(Table(f"{model}: {title}, %", header, lines, 2))
    return found


def answer(found: Mapping[str, Mapping[float, Mapping[int, dict]]]) -> str:
    """What the sweeps of `read_sweeps` are of, in a sentence."""
    sweeps = [results for curves in found.values() for curve in curves.values() for results in curve.values()]
    counts = sorted({iterations for curves in found.values() for curve in curves.values() for iterations in curve})
    seeds = len({run["seed"] for run in sweeps[0]["runs"]})
    spread = f"mean and standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
    parts = [f"Accuracy after {', '.join(f'{n:,}' for n in counts)} iterations of the synthesis", spread]
    return ", ".join(filter(None, (*parts, images_text(sweeps[0])))) + "."


def _read_sweep(path: pathlib.Path) -> tuple[dict, int, float, list[dict]]:
    """(all other settings, iterations, bandwidth, the results of each model); raises for what is none."""
    config, runs = (json.loads(file.read_bytes()) for file in (path.with_name("config.json"), path))
    iterations, bandwidth = (config["synthesis"].pop(name) for name in ("iterations", "bandwidth"))
    found = [of for results in runs for of in (results["float"] or {}, *results["runs"])]  # None: there was no data
    figures = [of.get(name) for of in found for name in FIGURES]
    finite = all(map(math.isfinite, (bandwidth, *filter(None, figures))))
    if type(iterations) is not int or iterations < 1 or not finite:
        raise ValueError
    return config, iterations, bandwidth, runs


def _cells(runs: list[dict]) -> set[tuple]:
    """What was run: (model, recipe, bits, calibration, seed)."""
    names = ("recipe", "bits", "calibration")
    cells = {(str(x["model"]), *(str(run[k]) for k in names), int(run["seed"])) for x in runs for run in x["runs"]}
    if not cells:
        raise ValueError
    return cells
