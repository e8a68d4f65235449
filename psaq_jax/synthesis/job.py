"""The synthesis of a job: in its folder, resumable, with images to spare where there is no data set."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator

import numpy as np

from psaq_jax.config import JobConfig
from psaq_jax.models.model import Model
from psaq_jax.progress import Progress
from psaq_jax.synthesis.checkpointing import open_checkpoints
from psaq_jax.synthesis.driver import SynthesisResult, synthesize, synthesize_parts
from psaq_jax.synthesis.finished_groups import Part


def synthesize_for_job(
    config: JobConfig,
    model: Model,
    folder: pathlib.Path,
    progress: Progress | None = None,
    every_seconds: float = 60.0,
    hold_out: bool | None = None,
) -> tuple[SynthesisResult, np.ndarray]:
    """Synthesizes the job's images, or goes on from FOLDER/checkpoints, where what is finished stays.

    SIGTERM and Ctrl-C end the process with its state on the disk; afterwards they do what they did before.

    Args:
      every_seconds: between checkpoints.
      hold_out: whether to make one group more; None: where the job has no data set.
    Returns:
      (the result for `synthesis.num_images` images, images held out): without a data set one group more is made, to
      compare models on images that no calibration saw.
    """
    count = config.synthesis.num_images
    spare = config.synthesis.group_size * (not config.data if hold_out is None else hold_out)
    settings = dataclasses.replace(config.synthesis, num_images=count + spare)
    passes = model.with_dtype(config.dtype)
    with open_checkpoints(folder / "checkpoints", every_seconds) as checkpoints:
        result = synthesize(passes, settings, config.seed, progress, checkpoints=checkpoints)
    return result._replace(images=result.images[:count], labels=result.labels[:count]), result.images[count:]


def parts_for_job(
    config: JobConfig,
    model: Model,
    folder: pathlib.Path,
    safe: Callable[[], int],
    progress: Progress | None = None,
    every_seconds: float = 60.0,
) -> Iterator[Part]:
    """As `synthesize_for_job`, part by part, for sets that no memory holds.

    Args:
      safe: the number of the first group that is not safe elsewhere; what comes before is not kept in FOLDER.
    """
    passes = model.with_dtype(config.dtype)
    with open_checkpoints(folder / "checkpoints", every_seconds) as checkpoints:
        for part in synthesize_parts(
            passes, config.synthesis, config.seed, progress, checkpoints=checkpoints, first=safe()
        ):
            yield part
            checkpoints.groups.drop(safe())
