"""The pictures that a run writes beside its results: of which images, with which labels."""

import types

import numpy as np

from psaq_jax.data.labels import class_names
from psaq_jax.report import figures, writing
from psaq_jax.report.figures import loss_curves, similarity_figure
from psaq_jax.report.images import image_grid
from tests.report.samples import history, image_sets


def drawn(figure) -> bytes:
    """The numbers of all lines and images, which take no time to draw."""
    values = [[x.get_array() for x in axes.images] + [x.get_ydata() for x in axes.lines] for axes in figure.axes]
    return repr([[np.asarray(x).tolist() for x in of_axes] for of_axes in values]).encode()


def test_grids_are_of_the_first_images_and_synthesized_ones_have_labels(tmp_path, vit, monkeypatch):
    monkeypatch.setattr(figures, "_png", drawn)
    sets = {name: pixels for name, pixels in image_sets(vit, 40).items() if name != "real"}
    sets["noise"] = sets["noise"][:2]
    result = types.SimpleNamespace(labels=np.arange(40) % vit.classes, history=history(3))
    written = writing.write_pictures(tmp_path, vit, sets, result)
    labels = class_names(vit.labels, result.labels[:32])
    assert {name: path.read_bytes() for name, path in written.items()} == {
        "synthesized images": image_grid(vit.preprocessing.denormalize(sets["synthesized"][:32]), labels),
        "noise images": image_grid(vit.preprocessing.denormalize(sets["noise"])),
        "loss curves": loss_curves(result.history),
        "patch similarities": similarity_figure(vit, {name: pixels[0] for name, pixels in sets.items()}),
    }
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == [
        "loss.png", "noise.png", "similarity.png", "synthesized.png",
    ]  # fmt: skip
