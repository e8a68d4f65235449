"""What results.json says of images, runs and sizes."""

import types

import numpy as np
import pytest

from psaq_jax import results
from psaq_jax.config import JobConfig
from psaq_jax.synthesis.config import SynthesisConfig


class Images(list):
    """As much of a data set as results ask for."""

    def __init__(self, count, skipped=(), train=None):
        super().__init__(range(count))
        self.skipped, self.train = list(skipped), train


def test_broken_images_are_told_those_to_calibrate_on_last():
    train = Images(9, ["b: broken"])
    assert results.skipped(Images(9, ["a: broken"], train)) == ["a: broken", "b: broken"]
    assert results.skipped(Images(9, ["a: broken"])) == ["a: broken"] and results.skipped(None) == []


def test_figures_are_of_the_images_that_were_whole():
    config = JobConfig("m", synthesis=SynthesisConfig(num_images=8, group_size=4))
    assert results.evaluated_on(config, None, None) == {"images": 4, "kind": "synthesized"}
    assert results.evaluated_on(config, {"examples": 9}, Images(9)) == {"images": 9, "kind": "data"}
    of_seven = {"images": 7, "kind": "data", "skipped": 2}
    assert results.evaluated_on(config, {"examples": 7}, Images(9)) == of_seven


@pytest.mark.parametrize("dataset, evaluated", [(Images(9), True), (Images(9, train=Images(5)), False), (None, False)])
def test_real_images_are_of_those_measured_on_where_there_are_no_others(dataset, evaluated):
    found = results.calibrated_on({"synthesized": 32, "real": 9}, dataset)
    assert found["synthesized"] == {"images": 32, "evaluated": False}
    assert found["real"] == {"images": 9, "evaluated": evaluated}


def test_sizes_are_of_the_largest_file_at_the_same_bits(tmp_path):
    """And of float32, also where the parameters have another type."""
    runs, sizes = [], {("w4a8", "paper"): 70, ("w4a8", "default"): 90, ("w4a8", "distill"): 80, ("w8a8", "paper"): 99}
    for (bits, recipe), size in sizes.items():
        runs.append({"bits": bits, "recipe": recipe, "calibration": "noise"})
        folder = tmp_path / f"{bits}-{recipe}-noise"
        folder.mkdir()
        (folder / results.WEIGHTS).write_bytes(b"x" * size)
    model = types.SimpleNamespace(params={"a": np.zeros((3, 5), np.float16)})
    found = results.stored_sizes(model, tmp_path, {"runs": runs})
    assert found == {"float32": 60, "w4a8": 90, "w8a8": 99}
    assert results.run_name({"bits": "auto:4.5a8", "recipe": "paper", "calibration": "real"}) == "auto4.5a8-paper-real"


def test_losses_are_those_of_the_end():
    run = types.SimpleNamespace(
        seconds=6.0, seconds_per_iteration=2.0, compile_seconds=1.0, history={"loss": np.array([3.0, 2.0, 1.0])}
    )
    config = SynthesisConfig(num_images=8, group_size=4, iterations=3)
    assert results.synthesis_summary(config, run, np.zeros((4, 1))) == {
        "iterations": 3, "num_images": 8, "held_out": 4, "seconds": 6.0, "seconds_per_iteration": 2.0,
        "compile_seconds": 1.0, "final_loss": {"loss": 1.0},
    }  # fmt: skip


def test_figures_without_labels_are_agreement_alone():
    logits, of_float = np.array([[0.0, 1.0], [2.0, 0.0]]), np.array([[0.0, 1.0], [0.0, 1.0]])
    assert results.figures(logits, None, of_float) == {"top1": None, "top5": None, "loss": None, "agreement": 50}
    found = results.figures(logits, np.array([1, 0]), of_float)
    assert found["top1"] == 100 and found["agreement"] == 50 and list(found) == ["top1", "top5", "loss", "agreement"]
