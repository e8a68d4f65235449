"""The main job's steps between the public functions: calibration sets, and one quantized model evaluated."""

import pathlib
import shutil
from collections.abc import Collection, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from psaq_jax import distributed, temporary
from psaq_jax.config import AverageBits, JobConfig, parse_bits
from psaq_jax.data import Dataset, load_dataset
from psaq_jax.data.labels import check_classes, check_labelled
from psaq_jax.errors import InputError
from psaq_jax.evaluation import agreement, collect_logits, metrics, predict_logits
from psaq_jax.machine import describe_machine
from psaq_jax.models.loading import load_model
from psaq_jax.models.model import Model
from psaq_jax.progress import Bars, Progress
from psaq_jax.quantization import mixed_precision
from psaq_jax.quantization.artefact import is_artefact, load_quantized, load_quantized_if_whole
from psaq_jax.quantization.calibration import calibrate
from psaq_jax.quantization.contents import contents
from psaq_jax.quantization.hard_copies import hard_copy
from psaq_jax.quantization.recipes import read_recipe
from psaq_jax.quantization.transform import QuantizedModel, quantize
from psaq_jax.synthesis.checkpointing import warn_damaged
from psaq_jax.synthesis.config import SynthesisConfig
from psaq_jax.synthesis.driver import SynthesisResult

HARD = "hard:"  # before a source: a hard copy of that model


def load_float(config: JobConfig, source: str | None = None) -> Model:
    """The job's float model, or another `source` read with the job's settings; "hard:SOURCE" is its hard copy."""
    source = config.model if source is None else source
    model = load_model(source.removeprefix(HARD), config.image_size or None, config.revision or None)
    return hard_copy(model).replace(source=source) if source.startswith(HARD) else model


def load_either(config: JobConfig, execution: str = "simulated") -> Model | QuantizedModel:
    """A saved quantized model where `config.model` is its folder, else the float model.

    Raises:
      InputError: integer execution of a float model, another image size for a quantized one.
    """
    if is_artefact(config.model):
        q = load_quantized(config.model, execution)
        if config.image_size and q.image_size != (config.image_size, config.image_size):
            raise InputError(
                f"image_size is {config.image_size}, the quantized model {config.model} runs at "
                f"{q.image_size[0]}x{q.image_size[1]} alone; quantize the float model at that size"
            )
        return q
    if execution == "integer":
        raise InputError(f"--execution=integer is for saved quantized models, {config.model} is none; give an artefact")
    return load_float(config)


class Examples(NamedTuple):
    """What quantized models are compared with float on: a data set, or images that no calibration saw."""

    dataset: Dataset | None
    pixels: np.ndarray | None
    workers: int = 0

    def logits(self, model, batch_size: int, progress: Progress | None = None):
        """(logits [n, classes], labels [n] or None)."""
        if self.dataset is not None:
            return collect_logits(model, self.dataset, batch_size, progress, self.workers)
        return predict_logits(model, self.pixels, batch_size), None


def load_data(config: JobConfig) -> Dataset | None:
    """The data set of the job, or None where it has none."""
    if not config.data:
        return None
    return load_dataset(config.data, config.data_errors, config.class_index or None, config.labels_file or None)


def open_data(config: JobConfig, model: Model | QuantizedModel, labelled: bool = True) -> Dataset | None:
    """The same; `labelled`: once its classes and labels are the model's, as far as that is known before reading."""
    dataset = load_data(config)
    if dataset is not None and labelled:
        check_classes(dataset, model.labels)
        check_labelled(dataset, model.classes)
    return dataset


def calibration_images(config: JobConfig, model: Model, dataset: Dataset | None, synthesized) -> dict[str, np.ndarray]:
    """{name: normalised images}: as many noise and real images as synthesized ones; real only where there is data, and
    as many as it has (`calibrated_on`)."""
    count, sets = config.synthesis.num_images, {}
    for name in config.calibration:
        if name == "synthesized":
            sets[name] = np.asarray(synthesized)
        elif name == "noise":
            key = jax.random.fold_in(jax.random.key(config.seed), 2**31)  # a stream that no group of images uses
            sets[name] = np.asarray(jax.random.normal(key, (count, *model.image_shape), jnp.float32))
        elif dataset is not None:
            sets[name] = real_images(dataset).sample(model.preprocessing, count, config.seed, fewer=True)
    return sets


def real_images(dataset: Dataset) -> Dataset:
    """Those to calibrate on: the training split or, where there is none, the images that are evaluated."""
    return dataset.train or dataset


def calibrated_on(config: JobConfig, dataset: Dataset | None) -> dict[str, dict]:
    """{calibration set: {"images": how many, "evaluated": whether they are of those that figures are of}}."""
    count, found = config.synthesis.num_images, {}
    for name in config.calibration:
        if name != "real":
            found[name] = {"images": count, "evaluated": False}
        elif dataset is not None:
            images = min(count, len(real_images(dataset)))
            found[name] = {"images": images, "evaluated": dataset.train is None}
    return found


def quantized_models(
    config: JobConfig, model: Model, sets: dict[str, np.ndarray], workdir: pathlib.Path | None = None,
    bars: Bars = lambda title: None, done: Collection[str] = (),
) -> Iterator[tuple[dict, QuantizedModel | None]]:  # fmt: skip
    """Yields (run fields, QuantizedModel) for every recipe, calibration set and bit-width.

    Args:
      workdir: keeps what a reconstruction under way has finished.
      bars: progress bars by title.
      done: names of runs (`run_name`) that need no model any more; None stands for it.
    """
    folder = workdir and workdir / "reconstruction"
    for name in config.quantization.recipes:
        recipe, options = read_recipe(name, config.quantization.options)
        for calibration, pixels in sets.items():
            ranges = costs = None
            for bits in config.quantization.bits:
                run = {"calibration": calibration, "bits": bits, "recipe": name, "seed": config.seed}
                if run_name(run) in done:
                    yield run, None
                    continue
                if ranges is None and recipe == "paper":
                    ranges = calibrate(model, pixels)
                weights, activations = parse_bits(bits)
                if isinstance(weights, AverageBits):
                    if costs is None:
                        layers = mixed_precision.free_layers(model, options)
                        bar = bars(f"{calibration} measure kernels")
                        costs = mixed_precision.kernel_costs(model, pixels, layers, bar)
                    weights = mixed_precision.choose_bits(model, costs, weights, options)
                images = None if recipe == "paper" else pixels
                bar = bars(f"{run_name(run)} quantize")
                q = quantize(model, ranges, weights, activations, recipe, images, options, bar, folder)
                yield run, of_first_process(q)
                if folder:
                    shutil.rmtree(folder, ignore_errors=True)
    if folder:  # of a run that was saved and then killed
        shutil.rmtree(folder, ignore_errors=True)


def of_first_process(q: QuantizedModel | None) -> QuantizedModel:
    """Process 0's model in every process: where sums have no fixed order, as on GPUs, searches may end apart.

    Args:
      q: None in processes that have none.
    """
    if distributed.count() == 1:
        return q
    own = contents(q, {}) if distributed.is_first() else {}
    arrays = {name: np.frombuffer(content, np.uint8) for name, content in own.items()}
    with temporary.folder() as folder:
        for name, content in distributed.from_first(arrays).items():
            (folder / name).write_bytes(content.tobytes())
        return load_quantized(folder)


def run_name(run: dict) -> str:
    """The name of a run's folder: "w4a8-paper-synthesized"."""
    return f"{run['bits']}-{run['recipe']}-{run['calibration']}".replace(":", "")  # rsync would see a machine in it


def saved_model(folder: pathlib.Path) -> QuantizedModel | None:
    """What an earlier run of the job saved there; what is damaged makes room, for `save_quantized` replaces nothing
    that is no artefact.
    """
    q = load_quantized_if_whole(folder)
    if q is None and folder.exists():
        warn_damaged(folder)
        shutil.rmtree(folder, ignore_errors=True)
    return q


def score(q: QuantizedModel, examples: Examples, float_logits, batch_size: int, progress: Progress | None = None):
    """`figures` of a quantized model."""
    return figures(*examples.logits(q, batch_size, progress), float_logits)


def figures(logits, labels, float_logits) -> dict[str, float | None]:
    """{"top1", "top5", "loss", "agreement"}; the first three are None where `labels` is."""
    measured = metrics(logits, labels)._asdict() if labels is not None else dict.fromkeys(("top1", "top5", "loss"))
    measured.pop("examples", None)
    return measured | {"agreement": agreement(logits, float_logits)}


def begin_results(
    config: JobConfig, result: SynthesisResult, held_out: np.ndarray, float_logits, labels, dataset: Dataset | None
) -> dict:
    """What results.json says before anything is quantized; `labels`: None without a data set."""
    base = None if labels is None else metrics(float_logits, labels)._asdict()
    return {
        "model": config.model,
        **describe_machine(),
        "float": base,
        "runs": [],
        "synthesis": synthesis_summary(config.synthesis, result, held_out),
        "evaluated_on": evaluated_on(config, base),
        "calibrated_on": calibrated_on(config, dataset),
    }


def evaluated_on(config: JobConfig, base: dict | None) -> dict:
    """{"images": how many images figures are of, "kind": "data" or, held out from calibration, "synthesized"}.

    Args:
      base: the float model's figures; None without a data set.
    """
    if base is None:
        return {"images": config.synthesis.group_size, "kind": "synthesized"}
    return {"images": base["examples"], "kind": "data"}


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


def stored_sizes(model: Model, folder: pathlib.Path, results: dict) -> dict[str, int]:
    """{"float32": bytes of the float parameters, "w4a8": bytes of the largest weights file at these bits, ...}."""
    sizes = {"float32": sum(leaf.size * 4 for leaf in jax.tree.leaves(model.params))}
    for run in results["runs"]:
        size = (folder / run_name(run) / "model.safetensors").stat().st_size
        sizes[run["bits"]] = max(size, sizes.get(run["bits"], 0))
    return sizes
