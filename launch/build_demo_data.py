"""Builds the bundled data set from the idx files of Fashion-MNIST: a prepared TFDS data set in array_record.

    python -m launch.build_demo_data --data_dir=/usr/share/datasets/fashion-mnist

`--data_dir` holds the four idx files (Debian's package dataset-fashion-mnist, or
github.com/zalandoresearch/fashion-mnist). All 10,000 test images, and 4,096 of the 60,000 training images,
drawn without replacement: a pool for calibration on real images. PNG, lossless. The same seed gives the same
images.
"""

import os
import pathlib

import numpy as np
from absl import flags

from launch import config as launch_config
from psaq_jax import buckets, files, temporary, workdir
from psaq_jax.data import array_records
from psaq_jax.data.bundled import FASHION_MNIST, FASHION_MNIST_LABELS
from psaq_jax.data.idx import read_split
from psaq_jax.errors import InputError

DATA = flags.DEFINE_string("data_dir", "/usr/share/datasets/fashion-mnist", "Folder with the four idx files.")
OUTPUT = flags.DEFINE_string("output", str(FASHION_MNIST), "Folder to write the prepared data set to.")
TRAIN = flags.DEFINE_integer("train_images", 4096, "How many training images to keep.", 1)
SEED = flags.DEFINE_integer("seed", 0, "Seed of the choice of training images.", 0)
NAME = "fashion_mnist"


def write_split(folder, split, kinds, images, labels, keep):
    picked = np.arange(len(images))
    if keep < len(images):
        picked = np.sort(np.random.default_rng(SEED.value).choice(len(images), keep, replace=False))
    path = folder / array_records.shard_name(NAME, split, 0, 1)
    examples = ({"image": array_records.png(images[i]), "label": int(labels[i])} for i in picked)
    array_records.write_shard(path, kinds, examples)
    return [(len(picked), path.stat().st_size)]


def main():
    if not OUTPUT.value:
        raise InputError("--output is empty, expected a folder to write the data set to")
    if buckets.is_url(OUTPUT.value):
        raise InputError(f"--output={OUTPUT.value}: is a bucket, expected a folder of this machine; copy it from there")
    train, test = (read_split(DATA.value, name, 28, len(FASHION_MNIST_LABELS)) for name in ("train", "t10k"))
    directory = pathlib.Path(os.path.expanduser(OUTPUT.value))
    workdir.remove_unfinished(directory, below=False)
    kinds = array_records.features((28, 28, 1), FASHION_MNIST_LABELS)
    with temporary.folder() as folder:
        shards = {
            "train": write_split(folder, "train", kinds, *train, TRAIN.value),
            "test": write_split(folder, "test", kinds, *test, 10_000),
        }
        array_records.remove_description(directory)  # a data set that is there stays whole until now
        files.write_in_turn(directory, {path.name: path.read_bytes() for path in folder.iterdir()})
    array_records.write_description(
        directory, NAME, kinds, shards, homepage="https://github.com/zalandoresearch/fashion-mnist",
        description="Fashion-MNIST: {:,} test images and {:,} of the training images.".format(
            *(shards[split][0][0] for split in ("test", "train"))
        ),
    )  # fmt: skip


if __name__ == "__main__":
    launch_config.run(main)
