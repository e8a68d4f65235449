"""Sweeps: models x seeds x recipes x calibrations x bits, each cell once, into one table.

    WORKDIR/MODEL/float.json                                 the float model's figures
    WORKDIR/MODEL/seed_N/checkpoints/                        the synthesized images, shared by all cells of the seed
    WORKDIR/MODEL/seed_N/BITS-RECIPE-CALIBRATION.json        a cell that is done

Cells appear whole or not at all. The same command goes on after being killed, and a sweep that has grown (more models,
seeds, recipes, calibrations or bits) computes what is new; any other change is refused.
"""

import dataclasses
import hashlib
import json
import math
import pathlib
import re
from collections.abc import Callable

from psaq_jax import files, pipeline
from psaq_jax.config import JobConfig
from psaq_jax.errors import InputError
from psaq_jax.evaluation import metrics
from psaq_jax.models.model import Model
from psaq_jax.synthesis_job import synthesize_for_job
from psaq_jax.workdir import open_workdir

FREE = ("model", "models", "seed", "seeds", "calibration", "quantization", "data_workers")  # may differ in a later run
Bars = Callable[[str], pipeline.Progress | None]  # title -> what is called with (done, all)


@dataclasses.dataclass(frozen=True)
class SweepConfig(JobConfig):
    """The main job's settings, with several models and seeds.

    Attributes:
      models: sources for `load_model`; default: `model` alone.
      seeds: default: `seed` alone.
      crop_fraction: preprocessing in place of the checkpoint's own: short side to size / crop_fraction, rounded down,
        bicubic, centre crop (timm's crop_pct); 0: the checkpoint's own.
    """

    model: str = ""
    models: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    crop_fraction: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        models, seeds = (
            tuple(x) if isinstance(x, list | tuple) else (x,) for x in (self.models, self.seeds)
        )
        object.__setattr__(self, "models", tuple(dict.fromkeys(models or (self.model,))))
        object.__setattr__(self, "seeds", tuple(dict.fromkeys(seeds or (self.seed,))))
        for name in self.models:
            if not isinstance(name, str) or not name:
                raise InputError(f"models has {name!r}, expected sources such as 'bundled:fashion_mnist_vit'")
        for seed in self.seeds:
            if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**31:
                raise InputError(f"seeds has {seed!r}, expected whole numbers from 0 to 2147483647")
        if self.crop_fraction and not 0.1 <= self.crop_fraction <= 1:
            raise InputError(f"crop_fraction is {self.crop_fraction!r}, expected 0.1 to 1, or 0: the checkpoint's own")

    def preprocessed(self, model: Model) -> Model:
        """The model with this config's preprocessing."""
        if not self.crop_fraction:
            return model
        before = tuple(math.floor(side / self.crop_fraction) for side in model.image_size)
        changed = dataclasses.replace(
            model.preprocessing, resize="cover", resize_size=before, interpolation="bicubic",
            crop_fraction=self.crop_fraction,
        )  # fmt: skip
        return model.replace(preprocessing=changed)


def run_sweep(config: SweepConfig, workdir: pathlib.Path, bars: Bars = lambda title: None, tell=None) -> list[dict]:
    """Computes what is missing; returns one results dictionary per model: {"model", "float", "runs"} (DESIGN §4).

    Args:
      bars: progress bars by title.
      tell: called with the results so far, after every seed of every model.
    Raises:
      InputError: the folder belongs to another sweep, bad input of any cell.
    """
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in FREE}
    settings["quantization"] = {"options": dataclasses.asdict(config.quantization.options)}
    results = []
    with open_workdir(workdir, settings):
        for source in config.models:
            results.append({"model": source, "float": None, "runs": []})
            cells = _Cells(config, source, workdir / slug(source), bars)
            with open_workdir(cells.folder, {"model_fingerprint": cells.model.fingerprint()}):
                for seed in config.seeds:
                    results[-1]["runs"] += cells.of_seed(seed)
                    results[-1]["float"] = cells.float_figures()
                    if tell:
                        tell(results)
    return results


class _Cells:
    """The cells of one model; no image is read and nothing computed where none is missing."""

    def __init__(self, config: SweepConfig, source: str, folder: pathlib.Path, bars: Bars):
        self.config, self.source, self.folder, self.bars = config, source, folder, bars
        self.model = config.preprocessed(pipeline.load_float(config, source))
        self.dataset = pipeline.open_data(config, self.model)
        self._float_logits = None

    def of_seed(self, seed: int) -> list[dict]:
        """Every cell of a seed, computed where it is not on the disk."""
        config = dataclasses.replace(self.config, seed=seed, seeds=(seed,))
        cells = [
            (recipe, calibration, bits)
            for recipe in config.quantization.recipes
            for calibration in config.calibration
            for bits in config.quantization.bits
            if calibration != "real" or self.dataset is not None
        ]
        folder = self.folder / f"seed_{seed}"
        paths = {cell: folder / f"{cell[2]}-{cell[0]}-{cell[1]}.json" for cell in cells}
        missing = [cell for cell in cells if not paths[cell].exists()]
        if missing:
            for cell, figures in self.compute(config, folder, missing):
                files.write_json(paths[cell], figures)
        return [_read(path) for path in paths.values()]

    def compute(self, config: SweepConfig, folder: pathlib.Path, cells: list):
        """Yields (cell, its figures)."""
        result, held_out, title = None, None, f"{self.source} seed {config.seed}"
        if self.dataset is None or any(calibration == "synthesized" for _, calibration, _ in cells):
            result, held_out = synthesize_for_job(config, self.model, folder, self.bars(f"{title} synthesize"))
        wanted = tuple(dict.fromkeys(calibration for _, calibration, _ in cells))
        images = result.images if result else ()
        sets = pipeline.calibration_images(
            dataclasses.replace(config, calibration=wanted), self.model, self.dataset, images
        )
        examples = pipeline.Examples(self.dataset, None if self.dataset is not None else held_out, config.data_workers)
        if self.dataset is None:
            float_logits, _ = examples.logits(self.model, config.batch_size)
        else:
            float_logits = self.float_logits()
        for recipe, calibration, bits in cells:
            quantization = dataclasses.replace(config.quantization, bits=(bits,), recipe=recipe)
            one = dataclasses.replace(config, quantization=quantization)
            run, q = next(pipeline.quantized_models(one, self.model, {calibration: sets[calibration]}))
            bar = self.bars(f"{title} {bits}-{recipe}-{calibration}")
            yield (recipe, calibration, bits), run | pipeline.score(q, examples, float_logits, config.batch_size, bar)

    def float_logits(self):
        """The float model's logits on the data set, computed once; float.json keeps their figures."""
        if self._float_logits is None:
            examples = pipeline.Examples(self.dataset, None, self.config.data_workers)
            bar = self.bars(f"{self.source} float")
            self._float_logits, labels = examples.logits(self.model, self.config.batch_size, bar)
            files.write_json(self.folder / "float.json", metrics(self._float_logits, labels)._asdict())
        return self._float_logits

    def float_figures(self) -> dict | None:
        """{"top1", "top5", "loss", "examples"}, or None without a data set."""
        if self.dataset is None:
            return None
        if not (self.folder / "float.json").exists():
            self.float_logits()
        return _read(self.folder / "float.json")


def slug(source: str) -> str:
    """A folder's name for a model: different sources get different ones."""
    name = re.sub(r"[^A-Za-z0-9.]+", "_", source).strip("_.")[-80:]
    return f"{name}-{hashlib.sha256(source.encode()).hexdigest()[:8]}"


def _read(path: pathlib.Path) -> dict:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        raise InputError(f"{path}: is not a cell of a sweep; remove it and start the same command again") from None
