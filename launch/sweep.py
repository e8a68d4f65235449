"""Sweeps models x seeds x recipes x calibrations x bits into one table, each cell once.

    python -m launch.sweep --config=configs/sweeps/demo.py --workdir=DIR [--config.FIELD=VALUE ...]

Writes DIR/sweep.csv and DIR/sweep.md (mean and deviation over seeds, what could run in integers, wall time) and
DIR/runs.json (every run), after every seed, and DIR/MODEL/report.html, with the first seed's images and what its first
recipe loses layer by layer, after a model's last. Recipe "distill" is what "default" makes, trained as `launch.distill`
does; model "hard:SOURCE" is a copy of SOURCE with outlier channels that computes the same. Killed at any moment, the
same command goes on; with more seeds, models or bits it computes what is new.
"""

from absl import flags

from launch import config as launch_config
from launch import console, pages
from psaq_jax import report, sweep, sweep_tables
from psaq_jax.machine import describe_machine
from psaq_jax.sweep_config import SweepConfig
from psaq_jax.workdir import local_folder

CONFIG = launch_config.define_config()
WORKDIR = flags.DEFINE_string("workdir", None, "Folder for the cells and the tables.", required=True)


def main():
    config = launch_config.read_job(CONFIG, SweepConfig, "configs/sweeps/NAME.py")
    with local_folder(WORKDIR.value) as workdir:
        run_sweep(config, workdir)


def run_sweep(config, workdir):
    written = {}

    def write_page(result, model, pictures):
        name = result["model"]
        written[name] = pages.write_layers(
            workdir / sweep.slug(name), config, result | describe_machine(), model, **pictures
        )

    results = sweep.run_sweep(
        config, workdir, console.bar, lambda so_far: sweep_tables.write(workdir, so_far),
        launch_config.CHECKPOINT_SECONDS.value, write_page,
    )  # fmt: skip
    print(sweep_tables.table(results).plain())
    print(f"  figures are of {report.images_text(results[0])}")
    for title, path in sweep_tables.write(workdir, results).items():
        print(f"  {title}: {path}")
    for name, page in written.items():
        print(f"  report of {name}: {page}")


if __name__ == "__main__":
    launch_config.run(main)
