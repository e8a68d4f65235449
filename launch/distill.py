"""Distillation without data: synthesize -> quantize -> teacher and student compete -> evaluate (PSAQ-ViT V2).

    python -m launch.distill --config=configs/distill.py --workdir=DIR [--config.FIELD=VALUE ...]

At each pair of bit-widths recipe "default" makes the student's start, and the float model teaches it on generated
images alone. Writes DIR/results.json, config.json, log.txt, images/, quantized/NAME/, distillation/BITS/, report.html
and metrics/, and prints one table: float, start, distilled.
Killed at any moment, the same command goes on from its last checkpoint.
"""

from absl import flags

import psaq_jax
from launch import config as launch_config
from launch import console, logs, pages
from psaq_jax import files, machine, pipeline, report
from psaq_jax.config import DISTILL
from psaq_jax.distillation import job
from psaq_jax.report.writing import write_pictures
from psaq_jax.results import begin_results, run_name, stored_sizes
from psaq_jax.synthesis.job import synthesize_for_job
from psaq_jax.workdir import open_workdir

CONFIG = launch_config.define_config()
WORKDIR = flags.DEFINE_string("workdir", None, "Folder for everything that the job writes.", required=True)


def main():
    config = launch_config.read_job(CONFIG, job.DistillationJob)
    model = pipeline.load_float(config)
    dataset = pipeline.open_data(config, model)
    identity = config.identity(model, dataset)
    with open_workdir(WORKDIR.value, identity) as workdir, logs.logged(workdir):
        distill(config, model, dataset, workdir)


def distill(config, model, dataset, workdir):
    seconds, bar, spent = launch_config.CHECKPOINT_SECONDS.value, console.bar, logs.Stopwatch()
    result, held_out = synthesize_for_job(config, model, workdir, bar("synthesize"), seconds)
    files.write_npy(workdir / "images" / "synthesized.npy", result.images)
    sets, models = {"synthesized": result.images}, workdir / "quantized"
    written = write_pictures(workdir, model, sets, result)
    spent("synthesis")
    examples = pipeline.examples(config, dataset, held_out, workdir)
    float_logits, labels = examples.logits(model, config.batch_size, bar("float"))
    spent("evaluation of the float model")
    results = begin_results(config, result, held_out, sets, float_logits, labels, dataset)
    for run, q in job.students(config, model, result.images, workdir, bar, seconds):
        spent("distillation" if run["recipe"] == DISTILL else "quantization")
        folder = models / run_name(run)
        scores = pipeline.score(q, examples, float_logits, config.batch_size, bar(folder.name))
        spent("evaluation of quantized models")
        psaq_jax.save_quantized(q, folder, report.card_figures(results, run | scores, config.data))
        results["runs"].append(run | scores)
        spent("saving")
    results["distillation"] = job.summaries(config, workdir)
    results |= {"seconds": spent.seconds, "peak_memory_bytes": machine.peak_memory_bytes()}
    written |= {"results": files.write_json(workdir / "results.json", results), "models": models}
    written |= pages.write_measured(
        workdir, config, model, results, sets, result, run, q, stored_sizes(model, models, results),
        job.histories(config, workdir),
    )  # fmt: skip
    console.show(results)
    for title, path in written.items():
        print(f"  {title}: {path}")


if __name__ == "__main__":
    launch_config.run(main)
