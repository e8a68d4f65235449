"""Synthesis alone: writes images/ of the main job, with no data set and no quantization.

    python -m launch.synthesize --config=configs/demo.py --workdir=DIR [--config.synthesis.num_images=N ...]

Killed at any moment, the same command goes on from its last checkpoint.
"""

import dataclasses

from absl import flags

import psaq_jax
from launch import config as launch_config
from psaq_jax import files
from psaq_jax.report.writing import write_images
from psaq_jax.synthesis_job import synthesize_for_job
from psaq_jax.workdir import open_workdir

CONFIG = launch_config.define_config()
WORKDIR = flags.DEFINE_string("workdir", None, "Folder for everything that the job writes.", required=True)


def main():
    config = launch_config.read_job(CONFIG)
    model = psaq_jax.load_model(config.model)
    identity = dataclasses.asdict(config) | {"model_fingerprint": model.fingerprint()}
    with open_workdir(WORKDIR.value, identity) as workdir:
        synthesize(config, model, workdir)


def synthesize(config, model, workdir):
    seconds, bar = launch_config.CHECKPOINT_SECONDS.value, launch_config.bar("synthesize")
    result, _ = synthesize_for_job(config, model, workdir, bar, seconds, hold_out=False)
    written = files.write_npy(workdir / "images" / "synthesized.npy", result.images)
    files.write_npy(workdir / "images" / "labels.npy", result.labels)
    grid = write_images(workdir / "images", model, {"synthesized": result.images}, result.labels)["synthesized"]
    print(f"{len(result.images)} images in {result.seconds:.1f} s (compilation {result.compile_seconds:.1f} s)")
    print(f"  images: {written}\n  first of them: {grid}")


if __name__ == "__main__":
    launch_config.run(main)
