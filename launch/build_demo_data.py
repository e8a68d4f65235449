"""Builds the bundled data set from the idx files of Fashion-MNIST: a prepared TFDS data set in array_record.

    python -m launch.build_demo_data --data_dir=/usr/share/datasets/fashion-mnist

`--data_dir` holds the four idx files (Debian's package dataset-fashion-mnist, or
github.com/zalandoresearch/fashion-mnist). All 10,000 test images, and 4,096 of the 60,000 training images,
drawn without replacement: a pool for calibration on real images. PNG, lossless. The same seed gives the same
images.
"""

import io
import pathlib

import numpy as np
import tensorflow_datasets as tfds
from absl import app, flags
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from psaq_jax.data.bundled import FASHION_MNIST
from psaq_jax.data.idx import read_idx

DATA = flags.DEFINE_string("data_dir", "/usr/share/datasets/fashion-mnist", "Folder with the four idx files.")
OUTPUT = flags.DEFINE_string("output", str(FASHION_MNIST), "Folder to write the prepared data set to.")
TRAIN = flags.DEFINE_integer("train_images", 4096, "How many training images to keep.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of the choice of training images.")
LABELS = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def png(image):
    """PNG bytes: of a BytesIO that stands at its end, features.Image stores an empty image silently."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png", optimize=True)
    return buffer.getvalue()


def write_split(directory, split, prefix, features, keep):
    images = read_idx(pathlib.Path(DATA.value) / f"{prefix}-images-idx3-ubyte.gz")
    labels = read_idx(pathlib.Path(DATA.value) / f"{prefix}-labels-idx1-ubyte.gz")
    picked = np.arange(len(images))
    if keep < len(images):
        picked = np.sort(np.random.default_rng(SEED.value).choice(len(images), keep, replace=False))
    path = directory / f"fashion_mnist-{split}.array_record-00000-of-00001"
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for i in picked:
        writer.write(features.serialize_example({"image": png(images[i]), "label": int(labels[i])}))
    writer.close()
    return tfds.core.SplitInfo(name=split, shard_lengths=[len(picked)], num_bytes=path.stat().st_size)


def main(_):
    directory = pathlib.Path(OUTPUT.value)
    directory.mkdir(parents=True, exist_ok=True)
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(28, 28, 1), dtype=np.uint8, encoding_format="png"),
            "label": tfds.features.ClassLabel(names=LABELS),
        }
    )
    tfds.folder_dataset.write_metadata(
        data_dir=str(directory),
        features=features,
        split_infos=[
            write_split(directory, "train", "train", features, TRAIN.value),
            write_split(directory, "test", "t10k", features, 10_000),
        ],
        filename_template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        description="Fashion-MNIST: 10,000 test images and 4,096 of the training images.",
        homepage="https://github.com/zalandoresearch/fashion-mnist",
        supervised_keys=("image", "label"),
        check_data=False,
    )


if __name__ == "__main__":
    app.run(main)
