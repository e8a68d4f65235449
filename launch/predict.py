"""Predictions of a float or saved quantized model (`config.model` takes either) for images without labels.

    python -m launch.predict --config=configs/demo.py --config.model=SOURCE|ARTEFACT --config.data=SPEC --workdir=DIR
        [--execution=simulated|integer]

Writes DIR/predictions.jsonl, one line an image: its name and its five likeliest labels with their probabilities;
DIR/logits.npy, float32 [n, classes]; and DIR/report.html with the first images. `config.data` takes folder:, npz:
(labels not needed), tfds: and bundled:.
"""

import collections
import json

from absl import flags

import psaq_jax
from launch import config as launch_config
from launch import console, pages
from psaq_jax import files, pipeline
from psaq_jax.data.labels import class_names
from psaq_jax.evaluation import collect_logits
from psaq_jax.predictions import likeliest
from psaq_jax.quantization import integer_plan
from psaq_jax.quantization.artefact import EXECUTIONS
from psaq_jax.report import pictures, summary
from psaq_jax.text_tables import Table
from psaq_jax.workdir import results_folder

CONFIG = launch_config.define_config()
EXECUTION = flags.DEFINE_enum("execution", "simulated", EXECUTIONS, "Of a saved quantized model.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder for predictions, logits and report.html.", required=True)
MOST_LABELS = 50  # in the page's table
LINE_ENDS = str.maketrans({end: f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"})  # some readers' beside \n


def main():
    config = launch_config.read_job(CONFIG)
    model = pipeline.load_either(config, EXECUTION.value)
    if EXECUTION.value == "integer":
        print(f"  {integer_plan.summary(model.products)}")
    dataset = pipeline.load_data(config)
    if dataset is None:
        raise psaq_jax.InputError("config.data is empty, expected images such as folder:DIR or npz:FILE")
    with results_folder(WORKDIR.value) as workdir:
        predict(config, model, dataset, workdir)


def predict(config, model, dataset, workdir):
    logits, _ = collect_logits(model, dataset, config.batch_size, console.bar("images"), config.data_workers)
    likely = likeliest(logits, class_names(model.labels, range(logits.shape[1])))
    rows = ({"image": name, "top5": labels} for name, labels in zip(dataset.names(), likely, strict=True))
    lines = [json.dumps(row, ensure_ascii=False).translate(LINE_ENDS) for row in rows]
    arrays = files.write_npy(workdir / "logits.npy", logits)
    labels = files.write_text(workdir / "predictions.jsonl", "".join(f"{line}\n" for line in lines))
    page = write_page(config, model, dataset, [row[0]["label"] for row in likely], workdir)
    print(f"  logits: {arrays}\n  labels: {labels}\n  report: {page}")  # after all: nobody may be left to read it
    if dataset.skipped:
        print(f"  broken images, without a row in either: {len(dataset.skipped)}")


def write_page(config, model, dataset, labels, workdir):
    counts = collections.Counter(labels).most_common()
    shares = [(label, f"{n:,}", f"{100 * n / len(labels):.1f}") for label, n in counts[:MOST_LABELS]]
    note = repr(model)
    if len(counts) > MOST_LABELS:
        note = f"The {MOST_LABELS} most frequent of {len(counts)} labels. {note}"
    batch = next(iter(dataset.batches(model.preprocessing, pictures.SHOWN)))
    shown = pictures.gallery(model, batch.pixels[batch.mask], labels)
    lead = f"Predictions for {len(labels):,} images of {config.data}"
    lead = "; ".join([lead, *summary.skipped({"skipped": dataset.skipped})])
    return pages.write_tables(
        workdir, config, [Table("Images by their likeliest label", ("label", "images", "%"), shares, 1, note)],
        heading=config.model, kind="predictions", lead=f"{lead}.",
        galleries={"The first images and their likeliest labels": shown},
    )  # fmt: skip


if __name__ == "__main__":
    launch_config.run(main)
