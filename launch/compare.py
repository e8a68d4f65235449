"""Compares with the published table of PSAQ-ViT, or live with its PyTorch release.

    python -m launch.compare --config=configs/paper/deit_tiny.py --workdir=DIR [--config.data=folder:DIR ...]
    python -m launch.compare --config=configs/demo.py --workdir=DIR --baseline_dir=CLONE --baseline_python=PYTHON

The first is a sweep over --config.seeds, with its files, and writes DIR/comparison.md: mean and spread beside the
published figures. The second runs the release from CLONE (github zkkli/PSAQ-ViT; nothing in it is changed) in PYTHON,
an interpreter with torch and timm, on the same weights and images, and writes DIR/comparison.md and comparison.json;
the release's own log is DIR/release/release.log. --config.model also takes a shape with random weights, such as
deit_tiny. Both write DIR/report.html too.
Killed at any moment, the same command goes on, on the same kind of machine.
"""

import os

from absl import flags

from launch import config as launch_config
from launch import console, pages
from psaq_jax import sweep, sweep_tables
from psaq_jax.comparison import published
from psaq_jax.comparison.job import compare_with_release
from psaq_jax.errors import InputError
from psaq_jax.files import write_text
from psaq_jax.machine import describe_machine
from psaq_jax.workdir import local_folder

CONFIG = launch_config.define_config()
WORKDIR = flags.DEFINE_string("workdir", None, "Folder for everything that the job writes.", required=True)
CLONE = flags.DEFINE_string("baseline_dir", "", "A clone of zkkli/PSAQ-ViT, for the live comparison.")
PYTHON = flags.DEFINE_string("baseline_python", "", "An interpreter with torch and timm, to run it.")
ITERATIONS = flags.DEFINE_integer("baseline_iterations", 0, "Of the release's synthesis; 0: as many as ours.")
DEVICE = flags.DEFINE_enum(
    "baseline_device", "auto", ["auto", "cpu", "cuda", "cuda-tf32"],
    "Where the release runs; cuda-tf32: its float32 products in TF32, which it does not ask for itself.",
)  # fmt: skip


def main():
    config = launch_config.read_job(CONFIG, published.CompareConfig, "configs/paper/NAME.py or configs/demo.py")
    if bool(CLONE.value) != bool(PYTHON.value):
        raise InputError("--baseline_dir and --baseline_python belong together; give both or neither")
    if not CLONE.value and (ITERATIONS.present or DEVICE.present):
        raise InputError(
            "--baseline_iterations and --baseline_device are of a run of the release; give --baseline_dir and "
            "--baseline_python too, or leave them out"
        )
    with local_folder(WORKDIR.value) as workdir:
        compare(config, workdir, launch_config.command())


def compare(config, workdir, command):
    if CLONE.value:
        # JAX would take most of a GPU's memory before the release starts; it reads this when it first sees the GPU.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        text, written = compare_with_release(
            config, workdir, CLONE.value, PYTHON.value, ITERATIONS.value, DEVICE.value, command, console.bar,
            launch_config.CHECKPOINT_SECONDS.value,
        )  # fmt: skip
    else:
        text, written = with_published(config, workdir, command)
    print(text)
    for title, path in written.items():
        print(f"  {title}: {path}")


def with_published(config, workdir, command):
    row = published.published_row(config)
    seconds, bar = launch_config.CHECKPOINT_SECONDS.value, console.bar
    results = sweep.run_sweep(config, workdir, bar, lambda so_far: sweep_tables.write(workdir, so_far), seconds)[0]
    text, table = published.page(row, results, command, describe_machine()), published.table(row, results)
    return table.plain(), {
        "comparison": write_text(workdir / "comparison.md", text),
        "report": pages.write_tables(
            workdir, config, [table], heading=config.model, kind="comparison", lead=published.answer(row, results)
        ),
    }


if __name__ == "__main__":
    launch_config.run(main)
