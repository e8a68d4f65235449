"""What jobs do between the public functions: open model and data, gather calibration images, quantize, score."""

import pathlib
import shutil
from collections.abc import Collection, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from psaq_jax import distributed, resumption, temporary
from psaq_jax.config import AverageBits, JobConfig, parse_bits
from psaq_jax.data import Dataset, KeptDataset, load_dataset
from psaq_jax.data.labels import check_classes, check_labelled
from psaq_jax.errors import InputError
from psaq_jax.evaluation import collect_logits, predict_logits
from psaq_jax.models.loading import load_model
from psaq_jax.models.model import Model
from psaq_jax.progress import Bars, Progress
from psaq_jax.quantization.artefact import is_artefact, load_quantized, load_quantized_if_whole
from psaq_jax.quantization.calibration import calibrate
from psaq_jax.quantization.contents import contents
from psaq_jax.quantization.hard_copies import hard_copy
from psaq_jax.quantization.mixed_precision import choose_bits, free_layers, kernel_costs
from psaq_jax.quantization.preparation import prepare
from psaq_jax.quantization.recipes import read_recipe
from psaq_jax.quantization.transform import QuantizedModel, quantize
from psaq_jax.results import figures, run_name
from psaq_jax.synthesis.passes import check_attention

HARD = "hard:"  # before a source: a hard copy of that model


def load_float(config: JobConfig, source: str | None = None) -> Model:
    """The job's float model, or another `source` read with the job's settings; "hard:SOURCE" is its hard copy.

    Raises:
      InputError: as `load_model`, and a fused attention that it or this machine has not.
    """
    source = config.model if source is None else source
    model = load_model(source.removeprefix(HARD), config.image_size or None, config.revision or None)
    check_attention(model.with_dtype(config.dtype), config.synthesis)
    return hard_copy(model).replace(source=source) if source.startswith(HARD) else model


def load_either(config: JobConfig, execution: str = "simulated") -> Model | QuantizedModel:
    """A saved quantized model where `config.model` is its folder, else the float model.

    Raises:
      InputError: integer execution of a float model, another image size for a quantized one.
    """
    if is_artefact(config.model):
        if config.revision:
            found = f"revision is {config.revision!r}, model {config.model!r} is a quantized model in a directory"
            raise InputError(f"{found}; only hub ids have revisions")
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


def examples(config: JobConfig, dataset: Dataset | None, held_out, folder: pathlib.Path) -> Examples:
    """Those of a job: of its data set, whose images are decoded once and kept in `folder`, or else held-out ones."""
    if dataset is None:
        return Examples(None, held_out)
    return Examples(KeptDataset(dataset, folder), None, config.data_workers)


def load_data(config: JobConfig) -> Dataset | None:
    """The data set of the job, or None where it has none."""
    if not config.data:
        return None
    return load_dataset(config.data, config.data_errors, config.class_index or None, config.labels_file or None)


def open_data(config: JobConfig, model: Model | QuantizedModel) -> Dataset | None:
    """The same, once its classes and labels are the model's, as far as that is known before reading."""
    dataset = load_data(config)
    check_data(dataset, model)
    return dataset


def check_data(dataset: Dataset | None, model: Model | QuantizedModel) -> None:
    """Raises InputError where a data set's classes or labels, as far as they are known, are not the model's."""
    if dataset is not None:
        check_classes(dataset, model.labels)
        check_labelled(dataset, model.classes)


def calibration_images(
    config: JobConfig, model: Model, dataset: Dataset | None, synthesized: np.ndarray | None
) -> dict[str, np.ndarray]:
    """{name: normalised images}: as many noise and real images as synthesized ones, or as the config has where there
    are none; real only where there is data, and at most as many as it has."""
    count, sets = config.synthesis.num_images if synthesized is None else len(synthesized), {}
    for name in config.calibration:
        if name == "synthesized":
            sets |= {} if synthesized is None else {name: np.asarray(synthesized)}
        elif name == "noise":
            key = jax.random.fold_in(jax.random.key(config.seed), 2**31)  # a stream that no group of images uses
            sets[name] = np.asarray(jax.random.normal(key, (count, *model.image_shape), jnp.float32))
        elif dataset is not None:
            sets[name] = dataset.for_calibration.sample(model.preprocessing, count, config.seed, fewer=True)
    return sets


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
            ranges, prepared, costs = None, None, None
            for bits in config.quantization.bits:
                run = {"calibration": calibration, "bits": bits, "recipe": name, "seed": config.seed}
                if run_name(run) in done:
                    yield run, None
                    continue
                if recipe == "paper":
                    ranges = ranges or calibrate(model, pixels)
                else:
                    prepared = prepared or prepare(model, pixels, options)
                weights, activations = parse_bits(bits)
                if isinstance(weights, AverageBits):
                    costs = costs or kernel_costs(
                        model, pixels, free_layers(model, options), prepared, bars(f"{calibration} measure kernels")
                    )  # fmt: skip
                    weights = choose_bits(model, costs, weights, options)
                bar = bars(f"{run_name(run)} quantize")
                q = quantize(model, ranges, weights, activations, recipe, prepared, options, bar, folder)
                if bits == config.quantization.bits[-1]:
                    prepared = None  # gigabytes, of a large model
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


def saved_model(folder: pathlib.Path) -> QuantizedModel | None:
    """What an earlier run of the job saved there; what is damaged makes room, for `save_quantized` replaces nothing
    that is no artefact.
    """
    q = load_quantized_if_whole(folder)
    if q is None and folder.exists():
        resumption.warn_damaged(folder)
        shutil.rmtree(folder, ignore_errors=True)
    return q


def score(q: QuantizedModel, examples: Examples, float_logits, batch_size: int, progress: Progress | None = None):
    """`results.figures` of a quantized model."""
    return figures(*examples.logits(q, batch_size, progress), float_logits)
