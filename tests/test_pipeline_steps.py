"""The main job's steps: what a job reads, what its figures are of, and models that share nothing they should not."""

import numpy as np
import pytest
from PIL import Image

from psaq_jax import calibrate, pipeline, quantize
from psaq_jax.config import JobConfig, QuantizationConfig
from psaq_jax.quantization.mixed_precision import choose_bits, free_layers, kernel_costs
from tests.export.small_models import random_model
from tests.random_models import random_pixels

pytestmark = pytest.mark.usefixtures("quickly_compiled")


@pytest.fixture
def folder(tmp_path):
    """Two images and one that is broken."""
    for value, name in enumerate("abc"):
        Image.new("RGB", (20, 16), (value,) * 3).save(tmp_path / f"{name}.png")
    (tmp_path / "b.png").write_bytes(b"broken")
    return tmp_path


def test_a_job_reads_its_data_as_its_config_says(folder, tmp_path_factory):
    notes = tmp_path_factory.mktemp("notes")
    (notes / "labels.txt").write_text("1\n0\n1\n")
    (notes / "index.json").write_text('["cat", "dog"]')
    config = JobConfig(
        "m", data=f"folder:{folder}", data_errors="skip", data_workers=1, class_index=str(notes / "index.json"),
        labels_file=str(notes / "labels.txt"),
    )  # fmt: skip
    dataset = pipeline.load_data(config)
    assert dataset.class_names == ("cat", "dog") and dataset.labels.tolist() == [1, 0, 1]
    examples = pipeline.examples(config, dataset, None, notes)
    assert examples.workers == 1
    logits, labels = examples._replace(workers=0).logits(random_model(), 2)
    assert logits.shape == (2, 5) and labels.tolist() == [1, 1] and len(dataset.skipped) == 1
    assert pipeline.load_data(JobConfig("m")) is None


def test_without_data_figures_are_of_what_no_calibration_saw(tmp_path):
    model, held_out = random_model(), random_pixels(count=3)
    logits, labels = pipeline.examples(JobConfig("m"), None, held_out, tmp_path).logits(model, 3)
    np.testing.assert_array_equal(logits, model(held_out))
    assert labels is None


def test_every_set_has_ranges_of_its_own(tmp_path):
    """And what a reconstruction had finished goes before the next model begins: it would be taken up there."""
    model, bits = random_model(), ("auto:4.5a8", "w8a8")
    sets = {"noise": random_pixels(count=4), "real": 3 * random_pixels(count=6)[:, ::-1]}
    config, left = JobConfig("m", seed=5, quantization=QuantizationConfig(bits)), tmp_path / "reconstruction"
    for run, q in pipeline.quantized_models(config, model, sets, tmp_path):
        assert not left.exists()
        left.mkdir()
        pixels, weights = sets[run["calibration"]], 8
        if run["bits"] != "w8a8":
            costs = kernel_costs(model, pixels, free_layers(model, None), None)
            weights = choose_bits(model, costs, pipeline.parse_bits(run["bits"])[0], None)
        expected = quantize(model, calibrate(model, pixels), weights, 8)
        assert q.kernel_bits == expected.kernel_bits and q.fingerprint() == expected.fingerprint()
    assert not left.exists()


def test_models_come_by_recipe_set_and_bits():
    """Those that are done without a model."""
    model, sets = random_model(), {"noise": random_pixels(count=4), "real": random_pixels(count=2)}
    config = JobConfig("m", seed=5, quantization=QuantizationConfig(("w8a8", "w4a32")))
    done = {"w8a8-paper-noise", "w4a32-paper-real"}
    found = list(pipeline.quantized_models(config, model, sets, done=done))
    assert [run for run, _ in found] == [
        {"calibration": calibration, "bits": bits, "recipe": "paper", "seed": 5}
        for calibration in sets
        for bits in ("w8a8", "w4a32")
    ]
    assert [q is None for _, q in found] == [True, False, False, True]
