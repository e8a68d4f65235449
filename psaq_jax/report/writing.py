"""Writes a run's pictures as PNG files."""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from psaq_jax import files
from psaq_jax.data.labels import class_names
from psaq_jax.extras import written
from psaq_jax.models.model import Model
from psaq_jax.report.figures import loss_curves, similarity_figure
from psaq_jax.report.images import image_grid

SHOWN = 32  # images of a set in its grid


def write_images(folder, model: Model, sets: Mapping[str, np.ndarray], targets: Sequence[int] | None = None):
    """Writes FOLDER/NAME.png for each set of normalised images [n, h, w, 3]; returns {name: path}.

    Args:
      targets: class numbers that the images of "synthesized" were made for; written below them.
    """
    grids = {}
    for name, pixels in sets.items():
        labels = None
        if name == "synthesized" and targets is not None:
            labels = class_names(model.labels, targets[:SHOWN])
        png = image_grid(model.preprocessing.denormalize(pixels[:SHOWN]), labels)
        grids[name] = files.write_bytes(pathlib.Path(folder) / f"{name}.png", png)
    return grids


def write_pictures(workdir, model: Model, sets: Mapping[str, np.ndarray], result) -> dict[str, pathlib.Path | str]:
    """Image grids, loss curves and the similarity picture under WORKDIR/images; returns {what it is: path}, of the last
    two why they are not there without the extra "report" (`extras.written`).

    Args:
      sets: {"synthesized", "noise", "real": normalised images}; `result`: of `synthesize`.
    """
    folder = pathlib.Path(workdir) / "images"
    grids = write_images(folder, model, sets, result.labels)
    first = {name: pixels[0] for name, pixels in sets.items()}
    return {f"{name} images": path for name, path in grids.items()} | {
        "loss curves": written(lambda: files.write_bytes(folder / "loss.png", loss_curves(result.history))),
        "patch similarities": written(
            lambda: files.write_bytes(folder / "similarity.png", similarity_figure(model, first))
        ),
    }
