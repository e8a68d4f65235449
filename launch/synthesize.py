"""Synthesis alone, with no data set and no quantization: DIR/images/synthesized.png shows the first images.

    python -m launch.synthesize --config=configs/demo.py --workdir=DIR [--config.synthesis.num_images=N ...]

Sets of up to 1 GiB are written as images/synthesized.npy (float32, normalised) and labels.npy. Larger ones, and all of
more than 1,024 images, are written as a TFDS data set in DIR/dataset, shard by shard; larger ones than 1 GiB never lie
in memory whole. report.html shows the first images beside noise, the losses and patch similarities.
Killed at any moment, the same command goes on from its last checkpoint.
"""

import dataclasses
import math

from absl import flags

import psaq_jax
from launch import config as launch_config
from launch import console, logs, pages
from psaq_jax import buckets, distributed, files, pipeline
from psaq_jax.data.synthesized import SHARD_IMAGES, SynthesizedWriter
from psaq_jax.errors import InputError
from psaq_jax.machine import describe_machine
from psaq_jax.report.writing import write_images
from psaq_jax.results import synthesis_summary
from psaq_jax.synthesis.driver import in_one
from psaq_jax.synthesis.job import parts_for_job, synthesize_for_job
from psaq_jax.workdir import open_workdir

CONFIG = launch_config.define_config()
WORKDIR = flags.DEFINE_string("workdir", None, "Folder for everything that the job writes.", required=True)
DATASET = flags.DEFINE_bool("dataset", None, "Write DIR/dataset for TFDS (default: from 1,025 images or 1 GiB on).")
EXACT = flags.DEFINE_bool("exact_pixels", False, "Put the float32 pixels into the data set too, beside the PNGs.")
NPY = flags.DEFINE_bool("npy", None, "Write images/synthesized.npy (default: up to 1 GiB).")
WHOLE = 2**30  # bytes


def main():
    config = launch_config.read_job(CONFIG)
    model = pipeline.load_float(config)
    outputs = choose_outputs(config, model)
    identity = config.identity(model)
    identity |= {"exact_pixels": True} if EXACT.value else {}  # shards of one data set hold the same
    with open_workdir(WORKDIR.value, identity) as workdir, logs.logged(workdir):
        synthesize(config, model, workdir, *outputs)


def choose_outputs(config, model) -> tuple[bool, bool]:
    """Whether to write images/synthesized.npy, and the data set."""
    whole = config.synthesis.num_images * math.prod(model.image_shape) * 4 <= WHOLE if NPY.value is None else NPY.value
    many = config.synthesis.num_images > SHARD_IMAGES or (NPY.value is None and not whole)
    wanted = many if DATASET.value is None else DATASET.value
    if not whole and not wanted:
        raise InputError("neither images/synthesized.npy nor a data set would be written; add --npy or --dataset")
    if EXACT.value and not wanted:
        raise InputError("--exact_pixels is of the data set, which would not be written; add --dataset")
    return whole, wanted


def synthesize(config, model, workdir, whole, wanted):
    writer = open_writer(config, model, workdir) if wanted and distributed.is_first() else None
    for part in all_at_once(config, model, workdir) if whole else one_by_one(config, model, workdir, writer):
        if part["first"] == 0:
            pixels, labels = part["images"].reshape(-1, *model.image_shape), part["labels"].reshape(-1)
            grid = write_images(workdir / "images", model, {"synthesized": pixels}, labels)["synthesized"]
            print(f"  first of them: {grid}")
        if writer:
            writer.add(part)
    if writer:
        print(f"  data set: {writer.close()} ({writer.shards} shards; tfds.builder_from_directory reads it)")


def all_at_once(config, model, workdir):
    seconds, bar = launch_config.CHECKPOINT_SECONDS.value, console.bar("synthesize")
    result, _ = synthesize_for_job(config, model, workdir, bar, seconds, hold_out=False)
    written = files.write_npy(workdir / "images" / "synthesized.npy", result.images)
    files.write_npy(workdir / "images" / "labels.npy", result.labels)
    print(f"{len(result.images)} images in {result.seconds:.1f} s (compilation {result.compile_seconds:.1f} s)")
    print(f"  images: {written}\n  report: {write_page(config, model, workdir, result)}")
    shape = (config.synthesis.groups, config.synthesis.group_size)
    images, labels = result.images.reshape(*shape, *model.image_shape), result.labels.reshape(shape)
    yield {"first": 0, "images": images, "labels": labels}


def write_page(config, model, workdir, result):
    beside = dataclasses.replace(config, calibration=("synthesized", "noise"))
    made = synthesis_summary(dataclasses.replace(config.synthesis, num_images=len(result.images)), result, ())
    return pages.write(
        workdir, config, {"model": config.model, **describe_machine(), "runs": [], "synthesis": made}, model=model,
        images=pipeline.calibration_images(beside, model, None, result.images), targets=result.labels,
        history=result.history,
    )  # fmt: skip


def one_by_one(config, model, workdir, writer):
    def safe():
        return writer.first if writer else 0

    seconds, bar = launch_config.CHECKPOINT_SECONDS.value, console.bar("synthesize")
    for part in parts_for_job(config, model, workdir, safe, bar, seconds):
        if part["first"] == 0:
            print(f"  report of the first: {write_page(config, model, workdir, in_one([part]))}")
        yield part


def open_writer(config, model, workdir):
    place = WORKDIR.value.rstrip("/") if buckets.is_url(WORKDIR.value) else workdir  # shards go straight to a bucket
    facts = {name: getattr(config, name) for name in ("model", "seed", "dtype")}
    facts |= {"synthesis": dataclasses.asdict(config.synthesis), "model_fingerprint": model.fingerprint()}
    facts["psaq_jax"] = psaq_jax.__version__
    return SynthesizedWriter(f"{place}/dataset", model, config.synthesis, config.seed, facts, EXACT.value)


if __name__ == "__main__":
    launch_config.run(main, several=True)
