"""Scalars and images for TensorBoard, written by tensorboardX."""

import os
import pathlib
from collections.abc import Mapping

import numpy as np

from psaq_jax.errors import InputError
from psaq_jax.extras import require
from psaq_jax.report.images import check_images
from psaq_jax.report.settings import settings
from psaq_jax.report.tables import markdown_table

SHOWN = 16  # images of a kind


def write_metrics(
    directory: str | os.PathLike,
    results: dict,
    history: Mapping[str, np.ndarray] | None = None,
    images: Mapping[str, np.ndarray | None] | None = None,
    distillations: Mapping[str, Mapping[str, np.ndarray]] | None = None,
) -> pathlib.Path:
    """Writes one event file into `directory` (workdir/metrics), which is made where it is missing, and returns it.

    Scalars: `synthesis/TERM` with the iteration, from 1, as the step, and `distillation/BITS/TERM` so; `float/top1` and
    the like at step 0; `RECIPE/BITS/CALIBRATION/top1` and the like with the seed as the step. Images: the first 16 of
    each kind. Text: the results table.

    Args:
      history: {term: [iterations]}.
      images: {kind: uint8 [n, h, w, 3], or None}.
      distillations: {bits: {term: [steps]}}.
    Raises:
      InputError: tensorboardX is missing (extra "log"), images that are not uint8 NHWC, no right to write.
    """
    writer_class = require("tensorboardX", "log").SummaryWriter
    curves = {"synthesis": history or {}} | {f"distillation/{bits}": x for bits, x in (distillations or {}).items()}
    pictures = {kind: check_images(x)[:SHOWN] for kind, x in (images or {}).items() if x is not None}
    try:
        for earlier in pathlib.Path(directory).glob("events.*"):
            earlier.unlink()  # TensorBoard would show every curve twice
        # The context manager closes the file, and with it the writer's thread, whatever happens.
        with writer_class(str(directory)) as writer:
            for name, terms in curves.items():
                for term, values in terms.items():
                    for i, value in enumerate(values):
                        writer.add_scalar(f"{name}/{term}", float(value), i + 1)
            _add_results(writer, results)
            for kind, shown in pictures.items():
                writer.add_images(f"images/{kind}", shown, dataformats="NHWC")
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{directory}: cannot be written ({reason}); choose another folder") from None
    return pathlib.Path(directory)


def _add_results(writer, results) -> None:
    for name, value in (results.get("float") or {}).items():
        if isinstance(value, int | float):
            writer.add_scalar(f"float/{name}", value, 0)
    for setting in settings(results):
        tag = "/".join(part for part in (setting.recipe, setting.bits, setting.calibration) if part)
        for field in ("top1", "top5", "loss", "agreement"):
            found = getattr(setting, field)
            # Steps are seeds where every run has both a figure and a seed, otherwise just numbers.
            if found:
                steps = setting.seeds if len(setting.seeds) == len(found.values) else range(len(found.values))
                for step, value in zip(steps, found.values, strict=True):
                    writer.add_scalar(f"{tag}/{field}", value, step)
    writer.add_text("results", markdown_table(results), 0)
