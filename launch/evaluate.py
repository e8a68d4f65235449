"""Top-1, top-5 and loss of a float model or of a saved quantized one (`config.model` takes either).

    python -m launch.evaluate --config=configs/demo.py --config.model=SOURCE|ARTEFACT --config.data=SPEC --workdir=DIR
        [--execution=simulated|integer]

Writes DIR/results.json, the figures under "float" or "quantized", and DIR/report.html.
"""

import json

from absl import flags

import psaq_jax
from launch import config as launch_config
from launch import console, pages
from psaq_jax import distributed, files, pipeline
from psaq_jax.machine import describe_machine
from psaq_jax.quantization import integer_plan
from psaq_jax.quantization.artefact import EXECUTIONS
from psaq_jax.quantization.transform import QuantizedModel
from psaq_jax.report import summary
from psaq_jax.text_tables import Table
from psaq_jax.workdir import results_folder

CONFIG = launch_config.define_config()
EXECUTION = flags.DEFINE_enum("execution", "simulated", EXECUTIONS, "Of a saved quantized model.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder for results.json and report.html.", required=True)


def main():
    config = launch_config.read_job(CONFIG)
    model = pipeline.load_either(config, EXECUTION.value)
    if EXECUTION.value == "integer":
        print(f"  {integer_plan.summary(model.products)}")
    dataset = pipeline.open_data(config, model)
    if dataset is None:
        raise psaq_jax.InputError("config.data is empty, expected a data set spec such as folder:DIR or npz:FILE")
    if distributed.count() > 1:  # hashing a model takes a while
        identity = config.identity(model, dataset) | {"execution": EXECUTION.value}
        distributed.check_same(f"--workdir={WORKDIR.value}'s run", json.dumps(identity))
    with results_folder(WORKDIR.value) as workdir:
        evaluate(config, model, dataset, workdir)


def evaluate(config, model, dataset, workdir):
    metrics = psaq_jax.evaluate(model, dataset, config.batch_size, console.bar("images"), config.data_workers)
    kind = "quantized" if isinstance(model, QuantizedModel) else "float"
    results = {"model": config.model, **describe_machine(), kind: metrics._asdict()}
    if kind == "quantized":
        results["execution"] = EXECUTION.value
    if dataset.skipped:
        results["skipped"] = dataset.skipped
    path = files.write_json(workdir / "results.json", results)
    print(f"top-1 {metrics.top1:.2f}  top-5 {metrics.top5:.2f}  loss {metrics.loss:.4f}  on {metrics.examples} images")
    print(f"  results: {path}\n  report: {write_page(config, model, metrics, results, workdir)}")


def write_page(config, model, metrics, results, workdir):
    header = ("data", "execution", "images", "top-1 %", "top-5 %", "loss, nats")
    execution = EXECUTION.value if isinstance(model, QuantizedModel) else "float"
    figures = (f"{metrics.examples:,}", f"{metrics.top1:.2f}", f"{metrics.top5:.2f}", f"{metrics.loss:.4f}")
    tables = [Table("Accuracy", header, [(config.data, execution, *figures)], 2, repr(model))]
    if EXECUTION.value == "integer":
        tables.append(integer_plan.table({config.model: model.products}))
    lead = "; ".join([f"Top-1 {metrics.top1:.2f} % of {metrics.examples:,} images", *summary.skipped(results)])
    return pages.write_tables(workdir, config, tables, heading=config.model, kind="accuracy report", lead=f"{lead}.")


if __name__ == "__main__":
    launch_config.run(main, several=True)
