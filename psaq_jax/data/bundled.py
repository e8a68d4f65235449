"""The data set that comes with the package: Fashion-MNIST, 10,000 test and 4,096 training images."""

import pathlib

from psaq_jax.data.tfds import TfdsSource
from psaq_jax.errors import InputError

FASHION_MNIST = pathlib.Path(__file__).parents[1] / "assets" / "fashion_mnist"
SPLITS = ("train", "test")
FASHION_MNIST_LABELS = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


def bundled_source(name: str, split: str) -> TfdsSource:
    """The source of bundled:NAME:SPLIT.

    Raises:
      InputError: another name or split, or the package was installed without its assets.
    """
    if name != "fashion_mnist" or split not in SPLITS:
        raise InputError(
            f"bundled: found {name}:{split}, expected fashion_mnist:test or fashion_mnist:train; correct it"
        )
    if not FASHION_MNIST.is_dir():
        raise InputError(
            f"{FASHION_MNIST}: not found; install the package with its assets, or run launch.build_demo_data"
        )
    return TfdsSource(FASHION_MNIST, split)
