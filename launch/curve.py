"""Draws what the iterations of the synthesis buy: accuracy over iterations, from sweeps that differ in them.

    for n in 100 200 1000; do
      for h in 0.01 0.05; do
        python -m launch.sweep --config=configs/accuracy.py:iterations --workdir=DIR/$n-$h \
            --config.synthesis.iterations=$n --config.synthesis.bandwidth=$h
      done
    done
    python -m launch.curve --workdir=DIR

Reads DIR/*/config.json and runs.json; writes DIR/MODEL.png: points of top-1 lost and agreement with the float model,
mean and standard deviation over seeds, a line a recipe and bandwidth, a column a pair of bit-widths.
"""

import json
import pathlib

from absl import flags

from launch import config as launch_config
from psaq_jax import files
from psaq_jax.errors import InputError
from psaq_jax.report.figures import accuracy_curves
from psaq_jax.sweep import slug
from psaq_jax.workdir import local_folder

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the sweeps' folders.", required=True)


def main():
    with local_folder(WORKDIR.value) as workdir:
        for model, results in read_sweeps(workdir).items():
            print(f"  curves of {model}: {files.write_bytes(workdir / f'{slug(model)}.png', accuracy_curves(results))}")


def read_sweeps(folder: pathlib.Path) -> dict[str, dict[float, dict[int, dict]]]:
    """{model: {bandwidth: {iterations: results}}} of every sweep below the folder; all else must be the same."""
    found: dict[str, dict[float, dict[int, dict]]] = {}
    first, first_seeds = None, None
    for path in sorted(folder.glob("*/runs.json")):
        try:
            config, runs = (json.loads(file.read_bytes()) for file in (path.with_name("config.json"), path))
            iterations, bandwidth = (config["synthesis"].pop(name) for name in ("iterations", "bandwidth"))
            models = [results["model"] for results in runs]
            seeds = sorted({run["seed"] for results in runs for run in results["runs"]})
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise InputError(f"{path}: found no sweep's runs.json and config.json, remove the folder") from None
        first, first_seeds = first or config, first_seeds or seeds
        if seeds != first_seeds:
            raise InputError(f"{path}: holds the seeds {seeds}, the other sweeps {first_seeds}; run what is missing")
        if config != first:
            more = "differs from the other sweeps in more than synthesis.iterations and synthesis.bandwidth"
            raise InputError(f"{path}: {more}, remove it")
        for model, results in zip(models, runs, strict=True):
            line = found.setdefault(model, {}).setdefault(bandwidth, {})
            if iterations in line:
                more = f"a second sweep of {iterations} iterations and bandwidth {bandwidth}"
                raise InputError(f"{path}: {more}, remove one of their folders")
            line[iterations] = results
    if not found:
        raise InputError(f"{folder}: found no sweep (*/runs.json), expected those of configs/accuracy.py:iterations")
    return found


if __name__ == "__main__":
    launch_config.run(main)
