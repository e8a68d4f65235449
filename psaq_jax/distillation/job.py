"""The job of `launch.distill` between synthesis and evaluation: at each pair of bit-widths a start and a student."""

import dataclasses
import pathlib
import shutil
from collections.abc import Iterator

import numpy as np

from psaq_jax import resumption
from psaq_jax.config import DISTILL, JobConfig
from psaq_jax.distillation.config import DistillationConfig
from psaq_jax.distillation.driver import DistillationResult, distill
from psaq_jax.errors import InputError
from psaq_jax.models.model import Model
from psaq_jax.pipeline import quantized_models, saved_model
from psaq_jax.progress import Bars, Progress
from psaq_jax.quantization.artefact import save_quantized
from psaq_jax.quantization.transform import QuantizedModel
from psaq_jax.report.writing import write_images
from psaq_jax.results import run_name
from psaq_jax.synthesis.checkpointing import open_checkpoints

SUMMARY, HISTORY, START = "summary.json", "history.npz", "start"


@dataclasses.dataclass(frozen=True)
class DistillationJob(JobConfig):
    """The settings of `launch.distill`: the main job's, whose recipe is "default" and calibration "synthesized"."""

    distillation: DistillationConfig = dataclasses.field(default_factory=DistillationConfig)

    def __post_init__(self):
        super().__post_init__()
        if self.quantization.recipes != ("default",):
            raise InputError(
                f"quantization.recipe is {self.quantization.recipe!r}, expected 'default': what the student starts from"
            )
        if self.calibration != ("synthesized",):
            raise InputError(f"calibration is {self.calibration!r}, expected ('synthesized',), which needs no data")


def students(
    config: DistillationJob, model: Model, images: np.ndarray, workdir: pathlib.Path, bars: Bars,
    every_seconds: float,
) -> Iterator[tuple[dict, QuantizedModel]]:  # fmt: skip
    """Yields (run fields, quantized model) at every pair of bit-widths: the start, then the student.

    The start is recipe "default" on the synthesized images. Models that an earlier run of the job saved under
    WORKDIR/quantized are read; a distillation under way goes on from WORKDIR/distillation.
    """
    models = workdir / "quantized"
    starts = [{"bits": bits, "recipe": "default", "calibration": "synthesized"} for bits in config.quantization.bits]
    saved = {name: saved_model(models / name) for name in map(run_name, starts)}
    done = {name: start for name, start in saved.items() if start is not None}
    for run, q in quantized_models(config, model, {"synthesized": images}, workdir, bars, done):
        start = done[run_name(run)] if q is None else q
        yield run, start
        run = run | {"recipe": DISTILL}
        place, folder = models / run_name(run), bits_folder(workdir, run["bits"])
        student = saved_model(place) if resumption.read_figures(folder / SUMMARY) else None
        if student is not None:
            yield run, student
        else:
            shutil.rmtree(place, ignore_errors=True)
            bar = bars(f"distill {run['bits']}")
            yield run, distill_for_job(config, model, start, images, folder, bar, every_seconds)


def bits_folder(workdir: pathlib.Path, bits: str) -> pathlib.Path:
    return workdir / "distillation" / bits.replace(":", "")


def distill_for_job(
    config: DistillationJob, model: Model, start: QuantizedModel, images: np.ndarray, folder: pathlib.Path,
    progress: Progress | None, every_seconds: float,
) -> QuantizedModel:  # fmt: skip
    """Distils, or goes on from FOLDER; writes FOLDER/generated.png, history.npz and summary.json at the end."""
    result = distill_in_folder(folder, config, config.distillation, model, start, images, progress, every_seconds)
    if config.distillation.generator_iterations:
        write_images(folder, model, {"generated": result.images[-config.distillation.batch_size :]})
    resumption.write_npz(folder / HISTORY, result.history)
    resumption.write_figures(folder / SUMMARY, _summary(result))
    shutil.rmtree(folder / START, ignore_errors=True)
    return result.model


def distill_in_folder(
    folder: pathlib.Path, config: JobConfig, distillation: DistillationConfig, model: Model, start: QuantizedModel,
    images: np.ndarray, progress: Progress | None = None, every_seconds: float = 60.0,
) -> DistillationResult:  # fmt: skip
    """Distils with the job's dtype, synthesis and seed, or goes on from FOLDER.

    FOLDER/start keeps the start, until the caller has what it wants of the student: made anew on other devices it would
    have other last bits. SIGTERM and Ctrl-C end the process with its state on the disk.
    """
    kept = saved_model(folder / START)
    if kept is None:
        save_quantized(start, folder / START)
    with open_checkpoints(folder, every_seconds) as checkpoints:
        passes, student = model.with_dtype(config.dtype), kept or start
        return distill(
            passes, student, images, distillation, config.synthesis, config.seed, progress, checkpoints=checkpoints
        )


def summaries(config: DistillationJob, workdir: pathlib.Path) -> dict[str, dict]:
    """{bits: what its distillation left in summary.json}, once `students` has given all."""
    return {bits: resumption.read_figures(bits_folder(workdir, bits) / SUMMARY) for bits in config.quantization.bits}


def histories(config: DistillationJob, workdir: pathlib.Path) -> dict[str, dict[str, np.ndarray]]:
    """{bits: the losses of its distillation (`DistillationResult.history`)}; none of a file that is missing or damaged,
    as of jobs of earlier versions.
    """
    return {bits: resumption.read_npz(bits_folder(workdir, bits) / HISTORY) or {} for bits in config.quantization.bits}


def _summary(result: DistillationResult) -> dict:
    """What results.json says of a distillation: seconds of its last process, images, first and last losses."""
    losses = {name: [float(values[0]), float(values[-1])] for name, values in result.history.items()}
    return {"seconds": result.seconds, "images": len(result.images), "first_and_last": losses}
