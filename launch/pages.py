"""The page that a job ends with, report.html."""

import dataclasses
import pathlib
from collections.abc import Mapping

import numpy as np

import psaq_jax
from launch import config as launch_config
from launch import console
from psaq_jax import files, report
from psaq_jax.config import JobConfig, without_training
from psaq_jax.models.model import Model
from psaq_jax.quantization.integer_plan import plan
from psaq_jax.quantization.recipes import read_recipe
from psaq_jax.quantization.transform import QuantizedModel
from psaq_jax.report.metrics import SHOWN
from psaq_jax.synthesis.driver import SynthesisResult

MEASURED = 32  # images that sensitivities are measured on


def write(folder: pathlib.Path, config: JobConfig, results: dict, **shown) -> pathlib.Path:
    """Writes FOLDER/report.html of a job of this config; shown: as `report.render_page` takes it."""
    page = report.render_page(results, config=dataclasses.asdict(config), command=launch_config.command(), **shown)
    return files.write_text(folder / "report.html", page)


def write_measured(
    workdir: pathlib.Path, config: JobConfig, model: Model, results: dict, sets: Mapping[str, np.ndarray],
    result: SynthesisResult, run: dict, q: QuantizedModel, sizes: Mapping[str, int] | None,
    distillations: Mapping[str, Mapping[str, np.ndarray]] | None = None,
) -> pathlib.Path:  # fmt: skip
    """Of a job that quantizes: measures the sensitivities of `q`, the quantized model of `run`, and writes its page and
    WORKDIR/metrics for TensorBoard; returns the page's path.

    Args:
      sets: {calibration: normalised images}; result: of the synthesis; sizes, distillations: of `report.render_page`.
    """
    pixels = sets[run["calibration"]][:MEASURED]
    recipe, _ = read_recipe(without_training(run["recipe"]))
    written = write(
        workdir, config, results, model=model, images=sets, targets=result.labels, history=result.history,
        ranges={name: psaq_jax.calibrate(model, pixels, recipe) for name, pixels in sets.items()},
        sensitivity=report.measure_sensitivity(model, q, pixels, console.bar("sensitivity")),
        sensitivity_images=len(pixels), measured=run, coverage=report.coverage_rows(plan(q)), sizes=sizes,
        distillations=distillations,
    )  # fmt: skip
    pictures = {name: model.preprocessing.denormalize(pixels[:SHOWN]) for name, pixels in sets.items()}
    report.write_metrics(workdir / "metrics", results, result.history, pictures, distillations)
    return written
