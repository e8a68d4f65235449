"""Times a model's forward pass in float32, bfloat16, simulated quantization and integers, interleaved in one run.

    python -m launch.latency --config=configs/latency.py --workdir=DIR [--cases=deit_tiny,ARTEFACT,...]

Writes DIR/latency.json: a row a model, batch size and execution, with the fields of `psaq_jax.latency.measure` and, for
integers, every matrix product: integer or float, and why; and DIR/report.html. Where integers are slower than float32,
the table says so.
"""

import dataclasses

from absl import flags

from launch import config as launch_config
from launch import console, pages
from psaq_jax import files, latency
from psaq_jax.cases import check_loadable
from psaq_jax.config import parse_bits
from psaq_jax.machine import describe_machine
from psaq_jax.quantization import integer_plan
from psaq_jax.quantization.artefact import is_artefact, load_quantized
from psaq_jax.workdir import results_folder

CONFIG = launch_config.define_config()
WORKDIR = flags.DEFINE_string("workdir", None, "Folder for latency.json and report.html.", required=True)
CASES = flags.DEFINE_list("cases", None, "Cases to time, in place of the config's.")


def main():
    config = launch_config.read_job(CONFIG, latency.LatencyConfig, "configs/latency.py")
    if CASES.value is not None:
        config = dataclasses.replace(config, cases=tuple(CASES.value))
    with results_folder(WORKDIR.value) as workdir:
        measure(config, workdir)


def measure(config, workdir):
    rows, products, machine = [], {}, describe_machine() | dataclasses.asdict(config)
    check_loadable([name for name in config.cases if not is_artefact(name)])
    for name in filter(is_artefact, config.cases):
        load_quantized(name)
    for name in config.cases:
        models = latency.executions(name, *parse_bits(config.bits))
        products[name] = models["integer"].products
        rows += latency.measure(name, models, config.batch_sizes, config.repeats, progress=console.bar(name))
        plain = {name: list(map(dataclasses.asdict, of_model)) for name, of_model in products.items()}
        results = machine | {"rows": rows, "products": plain}
        path = files.write_json(workdir / "latency.json", results)  # after each, so that none is lost
    table = latency.table(rows)
    page = pages.write_tables(
        workdir, config, [table, integer_plan.table(products)], heading=", ".join(config.cases),
        kind="latency report", lead=latency.answer(rows),
    )  # fmt: skip
    print(table.plain())
    print(f"  results: {path} on {results['device']}\n  report: {page}")


if __name__ == "__main__":
    launch_config.run(main)
