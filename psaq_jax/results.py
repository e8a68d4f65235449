"""What results.json says: of the job, its synthesis and its quantized models."""

import pathlib

import jax
import numpy as np

from psaq_jax.config import JobConfig
from psaq_jax.data import Dataset
from psaq_jax.evaluation import agreement, metrics
from psaq_jax.machine import describe_machine
from psaq_jax.models.model import Model
from psaq_jax.models.sources import WEIGHTS
from psaq_jax.synthesis.config import SynthesisConfig
from psaq_jax.synthesis.driver import SynthesisResult


def begin_results(
    config: JobConfig, result: SynthesisResult, held_out: np.ndarray, sets: dict[str, np.ndarray], float_logits, labels,
    dataset: Dataset | None,
) -> dict:  # fmt: skip
    """What results.json says before anything is quantized; `labels`: None without a data set."""
    base = None if labels is None else metrics(float_logits, labels)._asdict()
    broken = skipped(dataset)
    return {
        "model": config.model,
        **describe_machine(),
        "float": base,
        **({"skipped": broken} if broken else {}),
        "runs": [],
        "synthesis": synthesis_summary(config.synthesis, result, held_out),
        "evaluated_on": evaluated_on(config, base, dataset),
        "calibrated_on": calibrated_on({name: len(pixels) for name, pixels in sets.items()}, dataset),
    }


def skipped(dataset: Dataset | None) -> list[str]:
    """The messages of the broken images so far, those to calibrate on last."""
    splits = () if dataset is None else (dataset, dataset.train)
    return [message for split in splits if split is not None for message in split.skipped]


def evaluated_on(config: JobConfig, base: dict | None, dataset: Dataset | None) -> dict:
    """{"images": how many images figures are of, "kind": "data" or, held out from calibration, "synthesized"}, and
    "skipped", how many of the data set are broken, where any is.

    Args:
      base: the float model's figures; None without a data set.
    """
    if base is None:
        return {"images": config.synthesis.group_size, "kind": "synthesized"}
    broken = len(dataset) - base["examples"]
    return {"images": base["examples"], "kind": "data"} | ({"skipped": broken} if broken else {})


def calibrated_on(images: dict[str, int], dataset: Dataset | None) -> dict[str, dict]:
    """{calibration set: {"images": how many, "evaluated": whether they are of those that figures are of}}."""
    seen = dataset is not None and dataset.train is None
    return {name: {"images": count, "evaluated": seen and name == "real"} for name, count in images.items()}


def synthesis_summary(config: SynthesisConfig, result: SynthesisResult, held_out: np.ndarray) -> dict:
    """What results.json says of the synthesis: time and losses are of `num_images` and of those held out beside."""
    return {
        "iterations": config.iterations,
        "num_images": config.num_images,
        "held_out": len(held_out),
        "seconds": result.seconds,
        "seconds_per_iteration": result.seconds_per_iteration,
        "compile_seconds": result.compile_seconds,
        "final_loss": {name: float(values[-1]) for name, values in result.history.items()},
    }


def figures(logits, labels, float_logits) -> dict[str, float | None]:
    """{"top1", "top5", "loss", "agreement"}; the first three are None where `labels` is."""
    measured = metrics(logits, labels)._asdict() if labels is not None else dict.fromkeys(("top1", "top5", "loss"))
    measured.pop("examples", None)
    return measured | {"agreement": agreement(logits, float_logits)}


def stored_sizes(model: Model, folder: pathlib.Path, results: dict) -> dict[str, int]:
    """{"float32": bytes of the float parameters, "w4a8": bytes of the largest weights file at these bits, ...}."""
    sizes = {"float32": sum(leaf.size * 4 for leaf in jax.tree.leaves(model.params))}
    for run in results["runs"]:
        size = (folder / run_name(run) / WEIGHTS).stat().st_size
        sizes[run["bits"]] = max(size, sizes.get(run["bits"], 0))
    return sizes


def run_name(run: dict) -> str:
    """The name of a run's folder: "w4a8-paper-synthesized"."""
    return f"{run['bits']}-{run['recipe']}-{run['calibration']}".replace(":", "")  # rsync would see a machine in it
