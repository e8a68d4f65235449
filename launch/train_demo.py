"""Trains the bundled model on Fashion-MNIST, or a small Swin, and writes it in Hugging Face's layout.

    python -m launch.train_demo --data_dir=/usr/share/datasets/fashion-mnist --output=DIR [--family=swin]

`--data_dir` holds the four idx files of Fashion-MNIST (Debian's package dataset-fashion-mnist, or
github.com/zalandoresearch/fashion-mnist). A killed run resumes from its last epoch. The test set is looked at once an
epoch for the log; the weights that are saved are those of the last epoch, whatever its figure. DIR/report.html has the
log as a table.
"""

import json
import os
import pathlib
import time

import numpy as np
from absl import flags

from launch import config as launch_config
from launch import console, pages
from psaq_jax import training
from psaq_jax.checks import check_seed
from psaq_jax.checksums import checksum
from psaq_jax.data.bundled import FASHION_MNIST_LABELS
from psaq_jax.data.idx import read_split
from psaq_jax.errors import InputError
from psaq_jax.files import write_bytes
from psaq_jax.models.saving import save_huggingface
from psaq_jax.models.swin import SwinTransformer
from psaq_jax.models.vit import VisionTransformer
from psaq_jax.resumption import read_tree, write_tree
from psaq_jax.text_tables import Table
from psaq_jax.workdir import keep_settings, results_folder

DATA = flags.DEFINE_string("data_dir", "/usr/share/datasets/fashion-mnist", "Folder with the four idx files.")
OUTPUT = flags.DEFINE_string("output", None, "Folder to write the checkpoint and its log to.", required=True)
EPOCHS = flags.DEFINE_integer("epochs", 24, "Passes over the 60,000 training images, two of them to warm up.", 3)
BATCH = flags.DEFINE_integer("batch_size", 128, "Images a step.", 1, 60_000)
RATE = flags.DEFINE_float("learning_rate", 2e-3, "Peak learning rate of AdamW.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of initialisation, order and augmentation.", 0)
FAMILY = flags.DEFINE_enum("family", "vit", ["vit", "swin"], "What is trained: the demo model, or a small Swin.")
STATE, SETTINGS, LOG = "training_state.npz", "training_settings.json", "training_log.jsonl"
SIZE = (28, 28)
MEAN, STD = 0.286, 0.353  # of the training images, as published with the data set
MODULES = {
    "vit": VisionTransformer(SIZE, (4, 4), width=96, depth=6, heads=3, hidden=192, classes=10),
    "swin": SwinTransformer(
        SIZE, (2, 2), widths=(48, 96), depths=(2, 2), heads=(3, 6), hidden=(96, 192), window=(7, 7), classes=10
    ),
}


def load(split):
    images, labels = read_split(DATA.value, split, SIZE[0], len(FASHION_MNIST_LABELS))
    pixels = (np.repeat(images[..., None], 3, axis=-1) / np.float32(255) - np.float32(MEAN)) / np.float32(STD)
    return pixels, labels.astype(np.int32)


def main():
    if not OUTPUT.value:
        raise InputError("--output is empty, expected a folder to write the checkpoint to")
    if not 0 < RATE.value <= 1:
        raise InputError(f"--learning_rate is {RATE.value}, expected a number above 0, at most 1")
    check_seed(SEED.value, "--seed")
    examples, test = load("train"), load("t10k")
    count = len(examples[0])
    if BATCH.value > count:
        raise InputError(f"--batch_size is {BATCH.value}, there are {count} images; expected no more than that")
    with results_folder(OUTPUT.value, check_output, "--output") as output:
        train(*examples, test, output)


def check_output(output: pathlib.Path) -> None:
    if os.path.exists(output / "config.json") and not os.path.exists(output / SETTINGS):
        raise InputError(f"--output={output}: has another model's config.json; choose another folder")


def train(images, labels, test, output: pathlib.Path) -> None:
    """All epochs that OUTPUT's state lacks, and the checkpoint."""
    module = MODULES[FAMILY.value]
    epoch_steps = len(images) // BATCH.value
    optimizer = training.make_optimizer(RATE.value, EPOCHS.value * epoch_steps, 2 * epoch_steps, 0.05)
    step = training.make_train_step(
        module, optimizer, seed=SEED.value, margin=2, label_smoothing=0.1, average_decay=0.999
    )

    saved = output / STATE
    settings = {
        "family": FAMILY.value, "epochs": EPOCHS.value, "batch_size": BATCH.value, "learning_rate": RATE.value,
        "seed": SEED.value, "images": checksum(images), "labels": checksum(labels),
    }  # fmt: skip
    keep_settings(output / SETTINGS, settings, "belongs to a training with", "choose another --output")
    state = restored(saved, training.initial_state(module, optimizer, images[:1], SEED.value))
    done = int(state.step) // epoch_steps
    for epoch in range(done, EPOCHS.value):
        started = time.time()
        bar = console.bar(f"epoch {epoch + 1}")
        state, loss = training.train_epoch(step, state, images, labels, BATCH.value, SEED.value, epoch, bar)
        if not np.isfinite(loss):
            raise InputError(f"--learning_rate is {RATE.value}: epoch {epoch + 1} has no finite loss; take a lower one")
        test_top1 = training.top1(module, state.average, *test)
        note(output / LOG, epoch, loss, test_top1, time.time() - started)
        page = write_page(output, len(test[0]))
        write_tree(saved, state)
    save_huggingface(output, module, state.average, FASHION_MNIST_LABELS, mean=(MEAN,) * 3, std=(STD,) * 3)
    if done < EPOCHS.value:
        print(f"  report: {page}")


def restored(saved: pathlib.Path, start):
    """The state after the last whole epoch, or the start."""
    if not saved.exists():
        return start
    state = read_tree(saved, start)
    if state is None:
        raise InputError(f"{saved}: is damaged, or no state of this training; remove it to start anew")
    return state


def note(log: pathlib.Path, epoch: int, loss: float, test_top1: float, seconds: float) -> None:
    """Prints the epoch's row, and writes it behind those of the epochs before."""
    row = {"epoch": epoch + 1, "train_loss": round(loss, 4), "test_top1": round(test_top1, 2)}
    text = json.dumps(row | {"seconds": round(seconds, 1)})
    print(text, flush=True)
    rows = log.read_text().splitlines()[:epoch] if log.exists() else []  # without one that a killed run wrote
    write_bytes(log, "".join(f"{line}\n" for line in (*rows, text)).encode())


def write_page(output: pathlib.Path, tested: int) -> pathlib.Path | str:
    """The log as a page; tested: images of the test set."""
    log = [json.loads(line) for line in (output / LOG).read_text().splitlines()]
    forms = {"epoch": "", "train_loss": ".4f", "test_top1": ".2f", "seconds": ".1f"}
    rows = [[f"{row[name]:{form}}" for name, form in forms.items()] for row in log]
    table = Table("Epochs", ("epoch", "training loss", "test top-1 %", "seconds"), rows, 0)
    lead = f"{rows[-1][2]} % top-1 on {tested:,} test images after epoch {rows[-1][0]} of {EPOCHS.value}."
    heading = f"{FAMILY.value} on Fashion-MNIST"
    return pages.write_tables(output, None, [table], heading=heading, kind="training report", lead=lead)


if __name__ == "__main__":
    launch_config.run(main)
