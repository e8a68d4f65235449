"""The cells of one model of a sweep: which are on the disk, and what makes the others.

    FOLDER/float.json                                 the float model's figures
    FOLDER/seed_N/checkpoints/                        the synthesized images, shared by all cells of the seed
    FOLDER/seed_N/BITS-RECIPE-CALIBRATION.json        a cell that is done
    FOLDER/distillation/                              the same for recipe "distill", and its settings

Cells appear whole or not at all.
"""

import contextlib
import dataclasses
import pathlib
import shutil
import time
from collections.abc import Collection, Iterator

import jax
import numpy as np

from psaq_jax import pipeline, results, resumption
from psaq_jax.config import DISTILL, without_training
from psaq_jax.data import Dataset
from psaq_jax.distillation.job import distill_in_folder
from psaq_jax.errors import InputError
from psaq_jax.evaluation import Metrics, metrics
from psaq_jax.progress import Bars
from psaq_jax.quantization import integer_plan
from psaq_jax.quantization.transform import QuantizedModel
from psaq_jax.sweep_config import SweepConfig
from psaq_jax.synthesis.job import synthesize_for_job
from psaq_jax.workdir import open_workdir

FIGURES = ("top1", "top5", "loss", "agreement")  # of a cell
IMAGES = "calibration_images"  # of a cell: how many; cells of earlier versions have no such number


class Cells:
    """Where no cell is missing `complete` reads no image and computes nothing."""

    def __init__(
        self, config: SweepConfig, source: str, dataset: Dataset | None, folder: pathlib.Path, bars: Bars,
        every_seconds: float,
    ):  # fmt: skip
        self.config, self.source, self.folder, self.bars = config, source, folder, bars
        self.dataset, self.every_seconds = dataset, every_seconds
        self.model = config.preprocessed(pipeline.load_float(config, source))
        pipeline.check_data(dataset, self.model)
        self._float_logits = self._examples = None

    def distillations(self):
        """The folder of recipe "distill", locked, where the sweep has it; of these settings alone."""
        if DISTILL not in self.config.quantization.recipes:
            return contextlib.nullcontext()
        settings = {"distillation": dataclasses.asdict(self.config.distillation)}
        return open_workdir(self.folder / "distillation", settings)

    def seed_folder(self, seed: int, recipe: str) -> pathlib.Path:
        return (self.folder / "distillation" if recipe == DISTILL else self.folder) / f"seed_{seed}"

    def paths(self, seed: int) -> dict[tuple[str, str, str], pathlib.Path]:
        """{(recipe, calibration, bits): file} of every cell of a seed."""
        config = self.config
        return {
            (recipe, calibration, bits): self.seed_folder(seed, recipe) / f"{bits}-{recipe}-{calibration}.json"
            for recipe in config.quantization.recipes
            for calibration in config.calibration
            for bits in config.quantization.bits
            if calibration != "real" or self.dataset is not None
        }

    def complete(self, seed: int) -> None:
        """Computes the cells of a seed that are not on the disk, and the float model's figures."""
        config = dataclasses.replace(self.config, seed=seed, seeds=(seed,))
        paths = self.paths(seed)
        missing = [cell for cell, path in paths.items() if _damaged_or_missing(path)]
        if missing:
            for cell, figures in self.compute(config, missing):
                resumption.write_figures(paths[cell], figures)
                shutil.rmtree(paths[cell].parent / results.run_name(figures), ignore_errors=True)  # checkpoints
        if self.dataset is not None and _damaged_or_missing(self.folder / "float.json"):
            self.float_logits()

    def results(self) -> dict:
        """Of the cells that are on the disk, beside the float model's figures; of none before these are."""
        words, runs = ("recipe", "calibration", "bits"), []
        for seed in self.config.seeds:
            for cell, path in self.paths(seed).items():
                if (found := resumption.read_figures(path)) is not None:
                    runs.append(_checked(path, found, dict(zip(words, cell, strict=True), seed=seed), FIGURES))
        base = self.float_figures() if runs else None
        if base is None and self.dataset is not None:
            runs = []  # `complete` makes the figures, behind the folder's lock
        images = {run["calibration"]: run[IMAGES] for run in runs if IMAGES in run}
        return {
            "model": self.source,
            "float": base,
            "runs": runs,
            "evaluated_on": results.evaluated_on(self.config, base, self.dataset),
            "calibrated_on": results.calibrated_on(images, self.dataset),
        }

    def pictures(self) -> dict:
        """What a page shows of the first seed, as `report.render_page` takes it: its calibration images and, where they
        were synthesized, the classes that they were made for and the losses. Synthesized images are those that the
        cells kept: none is made for it, but for what a disk has damaged.
        """
        seed, made, images = self.config.seeds[0], {}, None
        config = dataclasses.replace(self.config, seed=seed, seeds=(seed,))
        if "synthesized" in config.calibration and (self.seed_folder(seed, "") / "checkpoints").is_dir():
            result, _ = self.synthesized(config)
            images, made = result.images, {"targets": result.labels, "history": result.history}
        return made | {"images": pipeline.calibration_images(config, self.model, self.dataset, images)}

    def synthesized(self, config: SweepConfig):
        """The images of a seed, and those held out: `synthesize_for_job`."""
        bar = self.bars(f"{self.source} seed {config.seed} synthesize")
        return synthesize_for_job(config, self.model, self.seed_folder(config.seed, ""), bar, self.every_seconds)

    def compute(self, config: SweepConfig, cells: list):
        """Yields (cell, its figures)."""
        result, held_out, title = None, None, f"{self.source} seed {config.seed}"
        if self.dataset is None or any(calibration == "synthesized" for _, calibration, _ in cells):
            result, held_out = self.synthesized(config)
        wanted = tuple(dict.fromkeys(calibration for _, calibration, _ in cells))
        images = result.images if result else None
        sets = pipeline.calibration_images(
            dataclasses.replace(config, calibration=wanted), self.model, self.dataset, images
        )
        if self.dataset is None:
            examples = pipeline.examples(config, None, held_out, self.folder)
            float_logits, _ = examples.logits(self.model, config.batch_size)
        else:
            examples, float_logits = self.examples(), self.float_logits()
        groups: dict[tuple[str, str], dict[str, list[str]]] = {}  # {(quantized by, on): {bits: recipes}}
        for recipe, calibration, bits in cells:
            groups.setdefault((without_training(recipe), calibration), {}).setdefault(bits, []).append(recipe)
        for (start, calibration), recipes in groups.items():
            quantization = dataclasses.replace(config.quantization, bits=tuple(recipes), recipe=start)
            some = dataclasses.replace(config, calibration=(calibration,), quantization=quantization)
            shared = {"synthesis_seconds": result.seconds if calibration == "synthesized" else None}
            shared[IMAGES] = len(sets[calibration])
            for run, q in self.quantized(some, title, sets[calibration], recipes):
                bar = self.bars(f"{title} {run['bits']}-{run['recipe']}-{calibration}")
                scores = pipeline.score(q, examples, float_logits, config.batch_size, bar)
                integers = {"integer_share": 100 * integer_plan.coverage(integer_plan.plan(q))}
                yield (run["recipe"], calibration, run["bits"]), run | shared | scores | integers

    def quantized(
        self, config: SweepConfig, title: str, pixels: np.ndarray, recipes: dict[str, list[str]]
    ) -> Iterator[tuple[dict, QuantizedModel]]:
        """Yields (run fields with the wall time, quantized model) of the recipes of all bits: the config's one, and
        "distill", which goes on from it.

        "quantization_seconds" are those of calibration, recipe and distillation in this process, with compilation and
        what serves all bits (`preparation`): the first bits take longest.
        """
        (calibration,), began = config.calibration, time.perf_counter()
        for run, start in pipeline.quantized_models(
            config, self.model, {calibration: pixels}, self.folder, lambda name: self.bars(f"{title} {name}")
        ):
            jax.block_until_ready(start)
            seconds = time.perf_counter() - began
            for recipe in recipes[run["bits"]]:
                run, began, q = run | {"recipe": recipe}, time.perf_counter(), start
                if recipe == DISTILL:
                    q = jax.block_until_ready(self.distilled(config, title, run, start, pixels))
                yield run | {"quantization_seconds": seconds + time.perf_counter() - began}, q
            began = time.perf_counter()

    def distilled(
        self, config: SweepConfig, title: str, run: dict, start: QuantizedModel, pixels: np.ndarray
    ) -> QuantizedModel:
        """The start, trained on its calibration set and, where that was synthesized, on the generator's images."""
        settings = config.distillation
        if run["calibration"] != "synthesized":
            settings = dataclasses.replace(settings, generator_iterations=0)
        name, folder = results.run_name(run), self.seed_folder(config.seed, DISTILL)
        bar = self.bars(f"{title} {name} train")
        args = config, settings, self.model, start, pixels, bar, self.every_seconds
        return distill_in_folder(folder / name, *args).model

    def examples(self) -> pipeline.Examples:
        """Of the data set: its images, once they are decoded."""
        if self._examples is None:
            self._examples = pipeline.examples(self.config, self.dataset, None, self.folder)
        return self._examples

    def float_logits(self):
        """The float model's logits on the data set, computed once; float.json keeps their figures."""
        if self._float_logits is None:
            bar = self.bars(f"{self.source} float")
            self._float_logits, labels = self.examples().logits(self.model, self.config.batch_size, bar)
            resumption.write_figures(self.folder / "float.json", metrics(self._float_logits, labels)._asdict())
        return self._float_logits

    def forget_data(self) -> None:
        """Frees the memory of its logits and the room of its images for the next model."""
        self._float_logits = self._examples = None

    def float_figures(self) -> dict | None:
        """{"top1", "top5", "loss", "examples"}, or None without a data set or a whole file of them."""
        path = self.folder / "float.json"
        if self.dataset is None or (found := resumption.read_figures(path)) is None:
            return None
        return _checked(path, found, {}, Metrics._fields)


def _damaged_or_missing(path: pathlib.Path) -> bool:
    """Whether a file of figures is to be made (again)."""
    if resumption.read_figures(path) is not None:
        return False
    if path.exists():
        resumption.warn_damaged(path)
    return True


def _checked(path: pathlib.Path, found: dict, words: dict, figures: Collection[str]) -> dict:
    """What a file holds, which must be these words, at least these figures, and beside them but numbers and null."""
    whole = found.items() >= words.items() and found.keys() >= set(figures)
    if not whole or not all(x is None or type(x) in (int, float) for name, x in found.items() if name not in words):
        raise InputError(f"{path}: is not a cell of this sweep; delete it and start the same command again")
    return found
