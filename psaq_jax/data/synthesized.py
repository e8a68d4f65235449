"""Synthesized images as a TFDS data set, shard by shard: for sets that no memory holds, and for anybody's trainer.

Split "train" of data set "synthesized". A record: "image" (uint8, PNG: the images in the model's own pixel range,
rounded and clipped to it), "label" (the class that it was made to show), "seed", "group" (numbers of the synthesis),
and, where asked for, "pixels": float32 [h, w, 3] normalised, exactly as synthesized. metadata.json says how they were
made.
"""

import concurrent.futures
import os
import pathlib

import numpy as np

from psaq_jax import buckets
from psaq_jax.data import array_records
from psaq_jax.extras import require
from psaq_jax.models.model import Model
from psaq_jax.synthesis.config import SynthesisConfig

NAME, SPLIT = "synthesized", "train"
SHARD_IMAGES = 1024


class SynthesizedWriter:
    """Takes groups in order and writes a shard whenever it has enough; goes on behind the shards that are there."""

    def __init__(
        self, directory, model: Model, config: SynthesisConfig, seed: int, facts: dict, exact_pixels: bool = False
    ):
        """`directory` may be a URL; `facts` (JSON values) go into metadata.json."""
        self.directory, self.model, self.config, self.seed, self.facts = str(directory), model, config, seed, facts
        self.exact_pixels = exact_pixels
        kinds = require("tensorflow_datasets", "data").features
        more = {"seed": kinds.Scalar(np.int64), "group": kinds.Scalar(np.int64)}
        if exact_pixels:
            more["pixels"] = kinds.Tensor(shape=model.image_shape, dtype=np.float32)
        self.features = array_records.features(model.image_shape, model.labels, **more)
        self.groups_per_shard = max(1, SHARD_IMAGES // config.group_size)
        self.shards = -(-config.groups // self.groups_per_shard)
        self.sizes = self._present()
        self.first = min(len(self.sizes) * self.groups_per_shard, config.groups)  # the first group that is missing
        self._waiting = []  # (images [b, h, w, 3], labels [b]) of the groups from `first` on

    def add(self, part: dict[str, np.ndarray]) -> None:
        """Groups from number part["first"] on, in order: "images" [groups, b, h, w, 3], "labels" [groups, b]."""
        begin = self.first + len(self._waiting) - int(part["first"])  # what a shard holds already is left out
        self._waiting += zip(part["images"][begin:], part["labels"][begin:], strict=True)
        while self._waiting and len(self._waiting) >= min(self.groups_per_shard, self.config.groups - self.first):
            groups, self._waiting = self._waiting[: self.groups_per_shard], self._waiting[self.groups_per_shard :]
            self._write(groups)
            self.first += len(groups)

    def close(self) -> str:
        """Writes the description, which makes the shards a data set; returns the folder."""
        tfds = require("tensorflow_datasets", "data")
        array_records.write_description(
            self.directory, NAME, self.features, {SPLIT: self.sizes}, metadata=tfds.core.MetadataDict(self.facts),
            description=f"Images synthesized from {self.model.source} by psaq_jax, with no data (PSAQ-ViT).",
        )  # fmt: skip
        return self.directory

    def _write(self, groups) -> None:
        place = self._place(len(self.sizes))
        array_records.write_shard(place, self.features, self._examples(groups))
        self.sizes.append((len(groups) * self.config.group_size, _size(place)))

    def _examples(self, groups):
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            for number, (images, labels) in enumerate(groups, self.first):
                encoded = pool.map(array_records.png, self.model.preprocessing.denormalize(images))
                for image, label, pixels in zip(encoded, labels, images, strict=True):
                    example = {"image": image, "label": int(label), "seed": self.seed, "group": number}
                    yield example | ({"pixels": pixels} if self.exact_pixels else {})

    def _present(self) -> list[tuple[int, int]]:
        """(records, bytes) of the shards that are there and whole, up to the first that is not."""
        sizes = []
        while len(sizes) < self.shards and (size := _size(self._place(len(sizes)))):
            groups = min(self.groups_per_shard, self.config.groups - len(sizes) * self.groups_per_shard)
            records, place = groups * self.config.group_size, self._place(len(sizes))
            if not buckets.is_url(place) and array_records.count(place) != records:  # an object appears whole
                break
            sizes.append((records, size))
        return sizes

    def _place(self, index: int) -> str:
        return f"{self.directory}/{array_records.shard_name(NAME, SPLIT, index, self.shards)}"


def _size(place: str) -> int | None:
    """Bytes of a file or object; None: there is none."""
    if buckets.is_url(place):
        fs, path = buckets.open_bucket(place)
        return fs.size(path) if fs.exists(path) else None
    path = pathlib.Path(place)
    return path.stat().st_size if path.exists() else None
