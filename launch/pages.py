"""The page that a job ends with, report.html: its path, or in words why there is none (`extras.written`)."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

import psaq_jax
from launch import config as launch_config
from launch import console
from psaq_jax import files, machine, report
from psaq_jax.config import JobConfig, has_whole_bits, parse_bits, without_training
from psaq_jax.extras import written
from psaq_jax.models.model import Model
from psaq_jax.quantization.integer_plan import plan
from psaq_jax.quantization.recipes import read_recipe
from psaq_jax.quantization.transform import QuantizedModel
from psaq_jax.report.metrics import SHOWN
from psaq_jax.synthesis.driver import SynthesisResult
from psaq_jax.text_tables import Table

MEASURED = 32  # images that sensitivities are measured on


def write(folder: pathlib.Path, config: JobConfig, results: dict, **shown) -> pathlib.Path | str:
    """Writes FOLDER/report.html of a job of this config; shown: as `report.render_page` takes it."""
    return written(lambda: _write(report.render_page, folder, config, results, **shown))


def write_tables(folder: pathlib.Path, config, tables: Sequence[Table], **shown) -> pathlib.Path | str:
    """Writes FOLDER/report.html of a run that quantizes nothing, on this machine, with the memory that it took until
    now; config: None for a script without one; shown: as `report.render_tables` takes it."""
    results = machine.describe_machine() | {"peak_memory_bytes": machine.peak_memory_bytes()}
    return written(lambda: _write(report.render_tables, folder, config, results, tables=tables, **shown))


def _write(render: Callable[..., str], folder, config, results, **shown):
    settings = None if config is None else dataclasses.asdict(config)
    page = render(results, config=settings, command=launch_config.command(), **shown)
    return files.write_text(folder / "report.html", page)


def write_measured(
    workdir: pathlib.Path, config: JobConfig, model: Model, results: dict, sets: Mapping[str, np.ndarray],
    result: SynthesisResult, run: dict, q: QuantizedModel, sizes: Mapping[str, int] | None,
    distillations: Mapping[str, Mapping[str, np.ndarray]] | None = None,
) -> dict[str, pathlib.Path | str]:  # fmt: skip
    """Of a job that quantizes: its page with the sensitivities of `q`, the quantized model of `run`, and
    WORKDIR/metrics for TensorBoard, {"report", "metrics": path}.

    Args:
      sets: {calibration: normalised images}; result: of the synthesis; sizes, distillations: of `report.render_page`.
    """

    def page():
        report.check_extra()  # before what takes minutes
        recipe, _ = read_recipe(without_training(run["recipe"]))
        return _write(
            report.render_page, workdir, config, results, model=model, images=sets, targets=result.labels,
            history=result.history, ranges=_ranges(model, sets, recipe), **_sensitivities(model, q, sets, run),
            coverage=report.coverage_rows(plan(q)), sizes=sizes, distillations=distillations,
        )  # fmt: skip

    def metrics():
        pictures = {name: model.preprocessing.denormalize(pixels[:SHOWN]) for name, pixels in sets.items()}
        return report.write_metrics(workdir / "metrics", results, result.history, pictures, distillations)

    return {"report": written(page), "metrics": written(metrics)}


def write_layers(
    folder: pathlib.Path, config: JobConfig, results: dict, model: Model, images: Mapping[str, np.ndarray], **shown
) -> pathlib.Path | str:
    """Of a job that keeps no quantized model: FOLDER/report.html with `layer_by_layer`."""

    def page():
        report.check_extra()  # before what takes minutes
        layers = layer_by_layer(config, model, images)
        return _write(report.render_page, folder, config, results, model=model, images=images, **shown, **layers)

    return written(page)


def layer_by_layer(config: JobConfig, model: Model, sets: Mapping[str, np.ndarray]) -> dict:
    """Ranges and sensitivities for `report.render_page`: of the job's first recipe and calibration set, at the last of
    its bits that are whole numbers; ranges alone where none are.

    What sensitivities take of a model are its bits and, of recipe "paper", its grids: ranges tell both.
    """
    name = without_training(config.quantization.recipes[0])
    recipe, options = read_recipe(name, config.quantization.options)
    shown = {"ranges": _ranges(model, sets, recipe)}
    bits = [setting for setting in config.quantization.bits if has_whole_bits(setting)]
    if not sets or not bits:
        return shown
    run = {"bits": bits[-1], "recipe": name, "calibration": next(iter(sets))}
    ranges = shown["ranges"][run["calibration"]]
    q = psaq_jax.quantize(model, ranges, *parse_bits(run["bits"]), recipe, options=options)
    return shown | _sensitivities(model, q, sets, run)


def _ranges(model: Model, sets: Mapping[str, np.ndarray], recipe: str) -> dict[str, Mapping]:
    return {name: psaq_jax.calibrate(model, pixels, recipe) for name, pixels in sets.items()}


def _sensitivities(model: Model, q: QuantizedModel, sets: Mapping[str, np.ndarray], run: dict) -> dict:
    pixels = sets[run["calibration"]][:MEASURED]
    found = report.measure_sensitivity(model, q, pixels, console.bar("sensitivity"))
    return {"sensitivity": found, "sensitivity_images": len(pixels), "measured": run}
