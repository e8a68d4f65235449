"""The live comparison: this package and the release on the same weights, images and machine, one after the other.

Both synthesize; then either quantizer is calibrated on either's images, on noise and on real images, and evaluated on
the same pixels. Files in the job's folder, all of which a restarted job takes up again:

    checkpoints/, synthesis.json    our synthesis
    release/                        what goes to the release and what it answers (`release.py`), and its log
"""

import dataclasses
import pathlib
import re
import time

import jax
import numpy as np

from psaq_jax import files, pipeline, results
from psaq_jax.comparison import parity
from psaq_jax.comparison.pixels import Pixels, write_dataset, write_synthesized
from psaq_jax.comparison.published import CompareConfig
from psaq_jax.comparison.release import Release, write_model
from psaq_jax.comparison.release_adapter.process_memory import peak_process_memory
from psaq_jax.config import parse_bits
from psaq_jax.data import Dataset
from psaq_jax.models.model import Model
from psaq_jax.progress import Bars
from psaq_jax.quantization.calibration import calibrate
from psaq_jax.quantization.transform import quantize
from psaq_jax.synthesis.job import synthesize_for_job

BY_RELEASE = "synthesized by the release"
BY_US = "synthesized by psaq_jax"
PARITY_IMAGES = 512
AGAIN = "remove the work folder and start again"


def compare_live(
    config: CompareConfig, model: Model, dataset: Dataset | None, release: Release, workdir: pathlib.Path,
    iterations: int, bars: Bars = lambda title: None, every_seconds: float = 60.0,
) -> tuple[dict, dict[str, np.ndarray]]:  # fmt: skip
    """Runs both; see `page.py` for what is shown.

    Args:
      release: of `open_release`.
      iterations: of the release's synthesis; ours has those of the config.
      every_seconds: between checkpoints of ours.
    Returns:
      ({"float", "rows", "synthesis", "release_evaluation"}, {calibration: normalised images [n, h, w, 3]})
    Raises:
      InputError: bad input of either side.
    """
    write_model(release, model)
    images, held_out, ours = _our_synthesis(config, model, workdir, bars, every_seconds)
    theirs, their_images = _their_synthesis(config, release, iterations, bars)
    sets = pipeline.calibration_images(config, model, dataset, images)
    sets = {BY_US: images, BY_RELEASE: their_images} | {k: v for k, v in sets.items() if k != "synthesized"}
    pixels = _write_pixels(config, model, dataset, held_out, release)
    evaluation = _their_quantization(config, release, sets, bars)
    float_logits = pixels.logits(model, config.batch_size, bars("psaq_jax float"))
    their_float = release.arrays("float")["logits"]
    compared = _Compared(config, model, release, pixels, float_logits, bars)
    base = compared.scores(float_logits) | {
        "examples": len(float_logits),
        "release": compared.scores(their_float),
        "largest_difference": float(np.abs(float_logits - their_float).max()),
    }
    found = [compared.rows(name, images) for name, images in sets.items()]
    rows = [row for at_these_bits in zip(*found, strict=True) for row in at_these_bits]
    made = f"recipe {config.synthesis.recipe}, {config.synthesis.parametrization}, {config.dtype}"
    synthesis = {"psaq_jax": ours | {"made": made}, "release": theirs | {"made": "recipe paper, pixels, float32"}}
    return {
        "float": base, "rows": rows, "synthesis": synthesis, "release_evaluation": evaluation,
        "calibrated_on": results.calibrated_on({name: len(images) for name, images in sets.items()}, dataset),
    }, sets  # fmt: skip


class _Pace:
    """A progress callback that also notes the fastest seconds per iteration between two calls."""

    def __init__(self, bar):
        self.bar, self.last, self.fastest = bar, None, None

    def __call__(self, done: int, total: int) -> None:
        now = time.perf_counter()
        if self.last and done > self.last[1]:
            pace = (now - self.last[0]) / (done - self.last[1])
            self.fastest = pace if self.fastest is None else min(self.fastest, pace)
        self.last = now, done
        if self.bar:
            self.bar(done, total)


def _our_synthesis(config, model, workdir, bars, every_seconds):
    """(images, images held out, figures): the first run's figures stay, a resumed run would time less."""
    path, pace = workdir / "synthesis.json", _Pace(bars("psaq_jax synthesizes"))
    result, held_out = synthesize_for_job(config, model, workdir, pace, every_seconds)
    if not path.exists():
        on_device = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
        figures = results.synthesis_summary(config.synthesis, result, held_out) | {
            "seconds_per_iteration_min": pace.fastest or result.seconds_per_iteration,
            "peak_memory_bytes": peak_process_memory(), "device_peak_bytes": on_device,
        }  # fmt: skip
        files.write_json(path, figures)
    return result.images, held_out, files.read_json(path, AGAIN)


def _their_synthesis(config, release: Release, iterations: int, bars):
    """(figures, images); not done again where it is there."""
    size = config.synthesis.group_size
    release.job(seed=config.seed, iterations=iterations, groups=config.synthesis.groups, group_size=size)
    if not release.has("generated.npz"):
        release.run("generate", bars("the release synthesizes"))
    figures = files.read_json(release.folder / "generate.json", AGAIN)
    seconds = figures.pop("seconds")
    figures |= {
        "iterations": iterations, "seconds": sum(seconds), "seconds_per_iteration": float(np.mean(seconds)),
        "seconds_per_iteration_min": min(seconds),
    }  # fmt: skip
    return figures, release.arrays("generated")["images"]


def _write_pixels(config, model, dataset, held_out, release: Release) -> Pixels:
    if dataset is None:
        pixels, fields = write_synthesized(release.folder, held_out)
    else:
        pixels, fields = write_dataset(release.folder, dataset, model, config.batch_size, config.data_workers)
    release.job(batch_size=config.batch_size, **fields)
    return pixels


def _their_quantization(config, release: Release, sets, bars) -> dict:
    for name, images in sets.items():
        files.write_npy(release.folder / f"{slug(name)}.npy", np.asarray(images, np.float32))
    runs = [
        {"name": f"{bits}-{slug(name)}", "calibration": f"{slug(name)}.npy", "bits": parse_bits(bits)}
        for name in sets
        for bits in config.quantization.bits
    ]
    release.job(runs=runs)
    if not (release.has("quantize.json") and all(release.has(f"{run['name']}.npz") for run in runs)):
        release.run("quantize", bars("the release quantizes"))
    return files.read_json(release.folder / "quantize.json", AGAIN)


def slug(name: str) -> str:
    return re.sub(r"\W+", "_", name)


@dataclasses.dataclass(frozen=True)
class _Compared:
    """What makes the rows of the comparison."""

    config: CompareConfig
    model: Model
    release: Release
    pixels: Pixels
    float_logits: np.ndarray
    bars: Bars

    def scores(self, logits) -> dict:
        return results.figures(logits, self.pixels.labels, self.float_logits)

    def rows(self, name: str, images) -> list[dict]:
        """One calibration set, a row for every bit-width."""
        ours, ranges = {bits: {} for bits in self.config.quantization.bits}, calibrate(self.model, images)
        for run, q in pipeline.quantized_models(self.config, self.model, {name: images}):
            bar = self.bars(f"psaq_jax {run['bits']}-{run['recipe']}, {name}")
            ours[run["bits"]][run["recipe"]] = self.scores(self.pixels.logits(q, self.config.batch_size, bar))
        return [self.row(name, bits, ranges, figures) for bits, figures in ours.items()]

    def row(self, name: str, bits: str, ranges, figures: dict) -> dict:
        """Figures of the release, of every recipe of ours, and the parity."""
        answer = self.release.arrays(f"{bits}-{slug(name)}")
        row = {"calibration": name, "bits": bits, "release": self.scores(answer["logits"]), "psaq_jax": figures}
        theirs = parity.named_ranges(ranges, answer["ranges"])
        q = quantize(self.model, theirs, *parse_bits(bits), recipe="paper")
        logits = self.pixels.logits(q, self.config.batch_size, first=PARITY_IMAGES)
        scale = float(jax.device_get(q.sites["logits"].scale))
        return row | {
            "range_difference": parity.range_difference(ranges, theirs),
            "parity": parity.logit_parity(logits, answer["logits"][: len(logits)], scale),
        }
