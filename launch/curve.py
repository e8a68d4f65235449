"""Draws what the iterations of the synthesis buy: accuracy over iterations, from sweeps that differ in them.

    for n in 100 200 1000; do
      for h in 0.01 0.05; do
        python -m launch.sweep --config=configs/accuracy.py:iterations --workdir=DIR/$n-$h \\
            --config.synthesis.iterations=$n --config.synthesis.bandwidth=$h
      done
    done
    python -m launch.curve --workdir=DIR

Reads DIR/*/config.json and runs.json; writes DIR/MODEL.png: points of top-1 lost and agreement with the float model,
mean and standard deviation over seeds, a line a recipe and bandwidth, a column a pair of bit-widths; and
DIR/report.html, with the pictures and their figures.
"""

from absl import flags

from launch import config as launch_config
from launch import pages
from psaq_jax import files, sweep_curves
from psaq_jax.report.figures import accuracy_curves
from psaq_jax.sweep import slug
from psaq_jax.workdir import local_folder

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the sweeps' folders.", required=True)


def main():
    with local_folder(WORKDIR.value) as workdir:
        found = sweep_curves.read_sweeps(workdir)
        drawn = {model: accuracy_curves(results) for model, results in found.items()}
        for model, png in drawn.items():
            print(f"  curves of {model}: {files.write_bytes(workdir / f'{slug(model)}.png', png)}")
        page = pages.write_tables(
            workdir, None, [table for model in found for table in sweep_curves.tables(model, found[model])],
            heading=", ".join(found), kind="report of iterations", lead=sweep_curves.answer(found),
            figures={f"{model}: accuracy over iterations": png for model, png in drawn.items()},
        )  # fmt: skip
        print(f"  report: {page}")


if __name__ == "__main__":
    launch_config.run(main)
