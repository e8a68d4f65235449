"""What only sweeps have: the recipe "distill", also when killed, and hard copies as models."""

import dataclasses

import jax
import numpy as np
import pytest

from psaq_jax import sweep, sweep_cells
from psaq_jax.config import QuantizationConfig
from psaq_jax.distillation.config import DistillationConfig
from psaq_jax.errors import InputError
from psaq_jax.models.loading import load_model
from psaq_jax.sweep import run_sweep
from psaq_jax.sweep_config import SweepQuantization
from tests import jobs
from tests.quick_recipe import QUICK
from tests.test_sweep import TINY, config, forbid, timeless

pytestmark = pytest.mark.usefixtures("quickly_compiled")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return jobs.small_data(tmp_path_factory.mktemp("data"))


def distillation(data, **changes):
    """A sweep of one seed and recipe "distill" alone."""
    settings = {
        "seeds": (0,), "quantization": SweepQuantization(("w6a8",), "distill", QUICK),
        "distillation": DistillationConfig(cycles=2, generator_iterations=2, student_steps=2, batch_size=4),
    }  # fmt: skip
    return config(data, **settings | changes)


@pytest.fixture(scope="module")
def distilled(data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("distilled")
    bars = []
    return workdir, run_sweep(distillation(data), workdir, lambda title: bars.append(title)), bars


def test_distill_trains_the_default_recipe_on_the_cells_images(distilled, data, monkeypatch):
    """The generator has its turns on synthesized images alone, and nothing of the training stays on the disk."""
    workdir, (results,), bars = distilled
    assert [(r["recipe"], r["bits"], r["calibration"]) for r in results["runs"]] == [
        ("distill", "w6a8", "synthesized"), ("distill", "w6a8", "noise"),
    ]  # fmt: skip
    assert sum(title.endswith("train") for title in bars) == 2
    assert not list(workdir.glob("*/distillation/seed_0/*/"))
    seen = []

    def spy(folder, job, settings, model, start, images, *rest):
        seen.append((start.recipe, start.weight_bits, settings.generator_iterations, len(images)))
        return distill_in_folder(folder, job, settings, model, start, images, *rest)

    distill_in_folder = sweep_cells.distill_in_folder
    monkeypatch.setattr(sweep_cells, "distill_in_folder", spy)
    for path in workdir.glob("*/distillation/seed_*/*.json"):
        path.unlink()
    assert timeless(run_sweep(distillation(data), workdir)) == timeless([results])
    assert seen == [("default", 6, 2, 4), ("default", 6, 0, 4)]


def test_distill_goes_on_from_what_default_made(distilled, data, tmp_path, monkeypatch):
    quantize, calls = sweep.pipeline.quantize, []
    monkeypatch.setattr(sweep.pipeline, "quantize", lambda *given: calls.append(given) or quantize(*given))
    both = SweepQuantization(("w6a8",), "default,distill", QUICK)
    found = run_sweep(distillation(data, calibration=("noise",), quantization=both), tmp_path)
    _, (*_, alone) = timeless(distilled[1])
    _, (start, same) = timeless(found)
    assert len(calls) == 1 and start["recipe"] == "default" and same == alone


def test_distillations_are_kept_and_their_settings_with_them(distilled, data, monkeypatch):
    workdir, results, _ = distilled
    forbid(monkeypatch, "psaq_jax.sweep_cells.distill_in_folder", "psaq_jax.sweep_cells.synthesize_for_job")
    assert timeless(run_sweep(distillation(data), workdir)) == timeless(results)
    changed = dataclasses.replace(distillation(data).distillation, cycles=3)
    with pytest.raises(InputError, match="belongs to another run: distillation.cycles is 2 there and 3 now"):
        run_sweep(distillation(data, distillation=changed), workdir)


@pytest.mark.parametrize("elsewhere, bar_of, at", [
    (False, "w6a8-distill-noise train", 3), (True, "w6a8-distill-noise train", 3),
    (True, "w6a8-distill-noise", 20),  # while the student is scored
])  # fmt: skip
def test_a_killed_sweep_goes_on_within_a_distillation(distilled, data, tmp_path, monkeypatch, elsewhere, bar_of, at):
    """Also on other devices, where the start would come out with other last bits."""
    workdir, results, _ = distilled
    made = sweep.pipeline.quantized_models

    def with_other_bits(*given):
        for run, q in made(*given):
            yield run, dataclasses.replace(q, params=jax.tree.map(lambda x: x + (x * 1e-6).astype(x.dtype), q.params))

    class Killed(BaseException):
        pass

    def bars(title):
        def bar(done, total):
            if title.endswith(bar_of) and done == at:
                raise Killed

        return bar

    with pytest.raises(Killed):
        run_sweep(distillation(data), tmp_path, bars, every_seconds=0)
    (place,) = tmp_path.glob("*/distillation/seed_0/w6a8-distill-noise")
    done = []
    if elsewhere:
        monkeypatch.setattr(sweep.pipeline, "quantized_models", with_other_bits)
    resumed = run_sweep(distillation(data), tmp_path, lambda title: lambda tick, total: done.append((title, tick)))
    assert timeless(resumed) == timeless(results) and not place.exists()
    ticks = [tick for title, tick in done if title.endswith("train")]
    assert ticks in ([3, 4], [4]) if at == 3 else [4]  # the last checkpoint may have been under way


def test_a_hard_copy_is_a_model_of_the_sweep_with_images_of_its_own(data, tmp_path):
    model = load_model(TINY)
    models = (TINY, f"hard:{TINY}")
    settings = config(
        data, models=models, seeds=(0,), calibration=("synthesized",),
        quantization=QuantizationConfig(("w8a8",), "paper,default", QUICK),
    )  # fmt: skip
    first, second = run_sweep(settings, tmp_path)
    assert (first["model"], second["model"]) == models
    for name in ("top1", "top5"):
        assert first["float"][name] == second["float"][name]
    kept = [next(tmp_path.glob(f"{sweep.slug(source)}/seed_0/checkpoints/*.npz")) for source in models]
    ours, copies = (np.load(path)["images"] for path in kept)
    assert np.abs(ours - copies).max() > 0
    copy = sweep.pipeline.load_float(settings, models[1])
    assert copy.source == models[1] and copy.fingerprint() != model.fingerprint()
    assert copy.preprocessing == model.preprocessing
    images = ours.reshape(-1, *model.image_shape)
    np.testing.assert_allclose(copy(images), model(images), atol=1e-4)
