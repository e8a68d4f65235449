"""Sweeps: models x seeds x recipes x calibrations x bits, each cell once, into one table.

WORKDIR/MODEL is the folder of a model's cells (`sweep_cells`). The same command goes on after being killed, and a sweep
that has grown (more models, seeds, recipes, calibrations or bits) computes what is new; any other change but of
`data_workers` and `data_errors` is refused.
"""

import dataclasses
import hashlib
import pathlib
import re
from collections.abc import Callable

from psaq_jax import files, pipeline
from psaq_jax.models.model import Model
from psaq_jax.progress import Bars
from psaq_jax.sweep_cells import Cells
from psaq_jax.sweep_config import SweepConfig
from psaq_jax.workdir import open_workdir

# May differ in a later run; the distillations have a folder and settings of their own.
FREE = (
    "model", "models", "seed", "seeds", "calibration", "quantization", "data_workers", "data_errors", "distillation",
)  # fmt: skip


def run_sweep(
    config: SweepConfig,
    workdir: pathlib.Path,
    bars: Bars = lambda title: None,
    tell: Callable[[list[dict]], object] | None = None,
    every_seconds: float = 60.0,
    show: Callable[[dict, Model, dict], object] | None = None,
) -> list[dict]:
    """Computes what is missing; returns one results dictionary per model: {"model", "float", "runs", "evaluated_on",
    "calibrated_on"}.

    Args:
      bars: progress bars by title.
      tell: called after every seed of every model with what is on the disk by then, from earlier commands too.
      every_seconds: between checkpoints of a synthesis or distillation.
      show: called after the last seed of every model with its results, the float model and `Cells.pictures`.
    Raises:
      InputError: the folder belongs to another sweep, bad input of any cell.
    """
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in FREE}
    settings["quantization"] = {"options": dataclasses.asdict(config.quantization.options)}
    dataset = pipeline.load_data(config)  # nothing is written where it or any of the models cannot be opened
    if dataset is not None:
        settings["data_contents"] = dataset.identity()
    models = [Cells(config, source, dataset, workdir / slug(source), bars, every_seconds) for source in config.models]
    with open_workdir(workdir, settings):
        for cells in models:
            with open_workdir(cells.folder, {"model_fingerprint": cells.model.fingerprint()}), cells.distillations():
                for seed in config.seeds:
                    cells.complete(seed)
                    if tell:
                        tell([found for each in models if (found := each.results())["runs"]])
                if show:
                    show(cells.results(), cells.model, cells.pictures())
            cells.forget_data()
        return [cells.results() for cells in models]


def slug(source: str) -> str:
    """A folder's name for a model: different sources get different ones."""
    name = re.sub(r"[^A-Za-z0-9.]+", "_", source).strip("_.")[-80:]
    return f"{name}-{hashlib.sha256(files.encoded(source)).hexdigest()[:8]}"
