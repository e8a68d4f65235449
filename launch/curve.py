"""Draws what the iterations of the synthesis buy: accuracy over iterations, from sweeps that differ in them.

    for n in 100 200 1000; do
      for h in 0.01 0.05; do
        python -m launch.sweep --config=configs/accuracy.py:iterations --workdir=DIR/$n-$h \\
            --config.synthesis.iterations=$n --config.synthesis.bandwidth=$h
      done
    done
    python -m launch.curve --workdir=DIR

Reads DIR/*/config.json and runs.json; writes DIR/MODEL.png: points of top-1 lost and agreement with the float model,
mean and standard deviation over seeds, a line a recipe and bandwidth, a column a pair of bit-widths.
"""

from absl import flags

from launch import config as launch_config
from psaq_jax import files
from psaq_jax.report.figures import accuracy_curves
from psaq_jax.sweep import slug
from psaq_jax.sweep_curves import read_sweeps
from psaq_jax.workdir import local_folder

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the sweeps' folders.", required=True)


def main():
    with local_folder(WORKDIR.value) as workdir:
        for model, results in read_sweeps(workdir).items():
            print(f"  curves of {model}: {files.write_bytes(workdir / f'{slug(model)}.png', accuracy_curves(results))}")


if __name__ == "__main__":
    launch_config.run(main)
