"""Sweeps that differ in the iterations and the bandwidth of the synthesis, read for `launch.curve`."""

import json
import math
import os
import pathlib

from psaq_jax.errors import InputError, reading

FIGURES = ("top1", "agreement")


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
