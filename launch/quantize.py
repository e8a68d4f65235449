"""The main job: synthesize -> calibrate -> quantize -> evaluate -> report.

    python -m launch.quantize --config=configs/demo.py --workdir=DIR [--config.FIELD=VALUE ...]

Writes DIR/results.json, config.json, images/, quantized/NAME/ with their figures in runs/NAME.json, report.html,
metrics/ and log.txt. Killed at any moment, the same command goes on: synthesis and reconstruction from their last
checkpoints, and behind the models that it has saved.
"""

import json
import pathlib

from absl import flags

import psaq_jax
from launch import config as launch_config
from launch import console, logs, pages
from psaq_jax import distributed, files, machine, pipeline, report, resumption
from psaq_jax.report.writing import write_pictures
from psaq_jax.results import begin_results, run_name, stored_sizes
from psaq_jax.synthesis.job import synthesize_for_job
from psaq_jax.workdir import open_workdir

CONFIG = launch_config.define_config()
WORKDIR = flags.DEFINE_string("workdir", None, "Folder for everything that the job writes.", required=True)


def main():
    config = launch_config.read_job(CONFIG)
    model = pipeline.load_float(config)
    dataset = pipeline.open_data(config, model)
    identity = config.identity(model, dataset)
    with open_workdir(WORKDIR.value, identity) as workdir, logs.logged(workdir):
        quantize(config, model, dataset, workdir)


def quantize(config, model, dataset, workdir):
    seconds, bar = launch_config.CHECKPOINT_SECONDS.value, console.bar("synthesize")
    spent = logs.Stopwatch()
    result, held_out = synthesize_for_job(config, model, workdir, bar, seconds)
    files.write_npy(workdir / "images" / "synthesized.npy", result.images)
    spent("synthesis")
    sets = pipeline.calibration_images(config, model, dataset, result.images)
    examples = pipeline.examples(config, dataset, held_out, workdir)
    float_logits, labels = examples.logits(model, config.batch_size, console.bar("float"))
    spent("evaluation of the float model")
    results = begin_results(config, result, held_out, sets, float_logits, labels, dataset)
    done = finished_runs(workdir)
    for run, q in pipeline.quantized_models(config, model, sets, workdir, console.bar, done):
        name = run_name(run)
        if q is None:
            results["runs"].append(run | done[name])
            continue
        spent("calibration and quantization")
        scores = pipeline.score(q, examples, float_logits, config.batch_size, console.bar(name))
        results["runs"].append(run | scores)
        logs.LOG.info("%s: %s", name, scores)
        spent("evaluation of quantized models")
        card = report.card_figures(results, run | scores, config.data)
        psaq_jax.save_quantized(q, workdir / "quantized" / name, card)
        resumption.write_figures(workdir / "runs" / f"{name}.json", scores)
        spent("saving")
    results |= {"seconds": spent.seconds, "peak_memory_bytes": machine.peak_memory_bytes()}
    files.write_json(workdir / "results.json", results)
    written = {"results": workdir / "results.json"} | write_pictures(workdir, model, sets, result)
    written |= write_page(workdir, model, config, results, sets, result)
    console.show(results)
    for title, path in written.items():
        print(f"  {title}: {path}")


def finished_runs(workdir) -> dict[str, dict]:
    """{name: figures} of the runs whose models process 0 has saved: a job that was killed goes on behind them.

    Those of which a file is damaged are left out, and so made again.
    """
    saved = {path.stem: resumption.read_figures(path) for path in sorted((workdir / "runs").glob("*.json"))}
    is_whole = {name: pipeline.saved_model(workdir / "quantized" / name) is not None for name in saved}
    whole = {name: figures for name, figures in saved.items() if is_whole[name] and figures is not None}
    return json.loads(distributed.gather_texts([json.dumps(whole)])[0])


def write_page(workdir, model, config, results, sets, result) -> dict[str, pathlib.Path | str]:
    last = results["runs"][len(config.quantization.bits) - 1]  # of the first recipe and calibration
    first, models = distributed.is_first(), workdir / "quantized"  # the others' lacks what an earlier start saved
    q = pipeline.of_first_process(psaq_jax.load_quantized(models / run_name(last)) if first else None)
    sizes = stored_sizes(model, models, results) if first else None
    return pages.write_measured(workdir, config, model, results, sets, result, last, q, sizes)


if __name__ == "__main__":
    launch_config.run(main, several=True)
