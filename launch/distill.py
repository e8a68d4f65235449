"""Distillation without data: synthesize -> quantize -> teacher and student compete -> evaluate (PSAQ-ViT V2).

    python -m launch.distill --config=configs/distill.py --workdir=DIR [--config.FIELD=VALUE ...]

At each pair of bit-widths recipe "default" makes the student's start, and the float model teaches it on generated
images alone. Writes DIR/results.json, config.json, log.txt, images/, quantized/NAME/ and distillation/BITS/, and prints
one table: float, start, distilled.
Killed at any moment, the same command goes on from its last checkpoint.
"""

from absl import flags

import psaq_jax
from launch import config as launch_config
from launch import console, logs
from psaq_jax import files, pipeline, report
from psaq_jax.distillation import job
from psaq_jax.report.writing import write_images
from psaq_jax.results import begin_results, run_name
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
    seconds, bar = launch_config.CHECKPOINT_SECONDS.value, console.bar
    result, held_out = synthesize_for_job(config, model, workdir, bar("synthesize"), seconds)
    files.write_npy(workdir / "images" / "synthesized.npy", result.images)
    sets = {"synthesized": result.images}
    write_images(workdir / "images", model, sets, result.labels)
    examples = pipeline.examples(config, dataset, held_out, workdir)
    float_logits, labels = examples.logits(model, config.batch_size, bar("float"))
    results = begin_results(config, result, held_out, sets, float_logits, labels, dataset)
    for run, q in job.students(config, model, result.images, workdir, bar, seconds):
        folder = workdir / "quantized" / run_name(run)
        scores = pipeline.score(q, examples, float_logits, config.batch_size, bar(folder.name))
        psaq_jax.save_quantized(q, folder, report.card_figures(results, run | scores, config.data))
        results["runs"].append(run | scores)
    results["distillation"] = job.summaries(config, workdir)
    written = files.write_json(workdir / "results.json", results)
    console.show(results)
    print(f"  results: {written}\n  models: {workdir / 'quantized'}")


if __name__ == "__main__":
    launch_config.run(main)
