"""Distillation as a whole: it brings the student nearer to its teacher, repeats itself, and survives being killed."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import psaq_jax
from psaq_jax.distillation import loop
from psaq_jax.distillation.config import DistillationConfig
from psaq_jax.distillation.driver import distill
from psaq_jax.distillation.job import DistillationJob
from psaq_jax.errors import InputError
from psaq_jax.export.description import write_description
from psaq_jax.synthesis.checkpointing import Checkpoints
from tests.damages import DAMAGES
from tests.golden_files import golden, nhwc, reference_vit
from tests.quick_recipe import QUICK, ROUNDING
from tests.scaled_copies import scaled

pytestmark = pytest.mark.usefixtures("quickly_compiled")

IMAGES = nhwc(golden("paper/vit/reference.npz")["calibration_images"])
SHORT = DistillationConfig(cycles=2, generator_iterations=3, student_steps=3, batch_size=4, mixing=0.5)


@pytest.fixture(scope="module")
def model():
    return reference_vit(2)


def quantized(model, weight_bits, activation_bits, **options):
    ranges, options = psaq_jax.calibrate(model, IMAGES, recipe="default"), dataclasses.replace(QUICK, **options)
    return psaq_jax.quantize(model, ranges, weight_bits, activation_bits, "default", IMAGES, options)


@pytest.fixture(scope="module")
def start(model):
    """Kernels to nearest: something is left to learn."""
    return quantized(model, 3, 4)


@pytest.fixture(scope="module")
def whole(model, start):
    """What interrupted runs must end with."""
    return distill(model, start, IMAGES, SHORT, seed=1)


def leaves(q):
    return [np.asarray(leaf) for leaf in jax.tree.leaves((q.params, q.sites))]


def error(model, q):
    return float(np.mean(np.abs(np.asarray(q(IMAGES)) - np.asarray(model(IMAGES)))))


def test_brings_the_student_nearer_to_its_teacher(model, start):
    rates = {"kernel_rate": 3e-3, "scale_rate": 3e-3, "float_rate": 1e-3}  # few steps on a small model: large ones
    config = DistillationConfig(cycles=1, generator_iterations=0, student_steps=200, batch_size=8, **rates)
    result = distill(model, start, IMAGES, config)
    assert error(model, result.model) < 0.8 * error(model, start)  # seen: 0.47 to 0.60, over four seeds
    assert result.history["student/discrepancy"].shape == (200,) and len(result.images) == len(IMAGES)


def test_the_first_steps_turn_no_code_of_kernels_that_second_moments_rounded(model):
    """These lie anywhere in or beyond their code's interval; turned all at once they would be rounded to nearest."""
    q = quantized(model, 4, 8, **ROUNDING)
    config = DistillationConfig(cycles=1, generator_iterations=0, student_steps=10, batch_size=8)
    learned = distill(model, q, IMAGES, config).model
    before, after = (x.params["block_1"]["mlp"]["dense1"]["kernel"].codes for x in (q, learned))
    np.testing.assert_array_equal(before, after)
    assert any((a != b).any() for a, b in zip(leaves(q), leaves(learned), strict=True)), "it has learned something"


def test_blocks_are_compared_in_the_same_basis(model):
    """Eight bits are near: what a rotated residual stream has in common with the model's as it is would be far."""
    config = dataclasses.replace(SHORT, cycles=1, generator_iterations=0)
    first = {
        ingredient: distill(
            model, quantized(model, 8, 8, **dict.fromkeys(filter(None, [ingredient]), True)), IMAGES, config
        ).history["student/features"][0]
        for ingredient in ("", "rotate", "bases")
    }
    assert max(first["rotate"], first["bases"]) < 1.5 * first[""] < 0.1, first


def test_bases_are_of_the_images_that_the_start_was_made_of(model):
    config = dataclasses.replace(SHORT, cycles=1, generator_iterations=0)
    with pytest.raises(InputError, match="images: found others than the quantized model was made of"):
        distill(model, quantized(model, 8, 8, rotate=True, bases=True), IMAGES[::-1] ** 2, config)
    distill(model, quantized(model, 8, 8, rotate=True), IMAGES[::-1] ** 2, config)  # these are not


def test_the_generators_images_enlarge_the_discrepancy(model, start):
    config = dataclasses.replace(SHORT, cycles=1, generator_iterations=40, batch_size=8)
    found = {
        weight: distill(model, start, IMAGES, dataclasses.replace(config, discrepancy_weight=weight))
        for weight in (0.0, 100.0)
    }
    last = {weight: result.history["generator/discrepancy"][-5:].mean() for weight, result in found.items()}
    assert last[100.0] > 1.5 * last[0.0]
    assert found[0.0].images.shape == (len(IMAGES) + 8, 32, 32, 3)


def test_the_generator_moves_frequencies_too(model, start):
    synthesis = psaq_jax.SynthesisConfig(recipe="default")
    config = dataclasses.replace(SHORT, cycles=1)
    made = distill(model, start, IMAGES, config, synthesis).images[len(IMAGES) :]
    assert made.shape == (4, 32, 32, 3), "images, not coefficients, which go beyond what pixels can be"
    assert (made >= model.preprocessing.lower - 1e-6).all() and (made <= model.preprocessing.upper + 1e-6).all()


def test_the_generators_images_of_scaled_copies_are_the_same(model, start):
    config = dataclasses.replace(SHORT, cycles=1, discrepancy_weight=0.0)
    copy = scaled(model)
    of_copy = distill(copy, psaq_jax.quantize(copy, psaq_jax.calibrate(copy, IMAGES), 3, 4), IMAGES, config)
    np.testing.assert_array_equal(of_copy.images, distill(model, start, IMAGES, config).images)


class Killed(Exception):
    pass


def interrupted(model, start, folder, at):
    """Kills a run of 12 ticks after tick `at`."""

    def interrupt(done, total):
        assert total == 12
        if done == at:
            raise Killed

    checkpoints = Checkpoints(folder, every_seconds=0)
    with pytest.raises(Killed):
        distill(model, start, IMAGES, SHORT, seed=1, progress=interrupt, checkpoints=checkpoints)
    checkpoints.close()
    return folder


def assert_ends_as(whole, model, start, folder, first):
    """Goes on from what the folder holds, at tick `first`, and ends with the same bits."""
    checkpoints, ticks = Checkpoints(folder, every_seconds=0), []
    result = distill(
        model, start, IMAGES, SHORT, seed=1, progress=lambda done, _: ticks.append(done), checkpoints=checkpoints
    )
    checkpoints.close()
    assert ticks == list(range(first, 13))
    for a, b in zip(leaves(result.model), leaves(whole.model), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(result.images, whole.images)
    assert result.history.keys() == whole.history.keys()
    for name, values in whole.history.items():
        np.testing.assert_array_equal(result.history[name], values)


@pytest.fixture(scope="module")
def killed(model, start, tmp_path_factory):
    """The folder of a run that was killed within the second turn's images."""
    return interrupted(model, start, tmp_path_factory.mktemp("killed"), 8)


@pytest.mark.parametrize("at", [3, 8, 12])  # the end of a turn's images, within the next one's, the end of the whole
def test_an_interrupted_run_ends_with_the_same_bits(model, start, whole, killed, tmp_path, at):
    if at == 8:
        shutil.copytree(killed, tmp_path, dirs_exist_ok=True)
    else:
        interrupted(model, start, tmp_path, at)
    assert_ends_as(whole, model, start, tmp_path, at + 1)


def test_checkpoints_of_other_settings_are_refused(model, start, tmp_path):
    checkpoints, shorter = Checkpoints(tmp_path, every_seconds=0), dataclasses.replace(SHORT, cycles=1)
    distill(model, start, IMAGES, shorter, seed=1, checkpoints=checkpoints)
    for images, config, seed, found in (
        (IMAGES, shorter, 2, "holds checkpoints of seed 1, which is 2 now"),
        (IMAGES + 1, shorter, 1, "of images"),
        (IMAGES, SHORT, 1, "of distillation.cycles 1, which is"),
    ):
        with pytest.raises(InputError, match=found):
            distill(model, start, images, config, seed=seed, checkpoints=checkpoints)
    checkpoints.close()


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_turn_is_made_again(model, start, whole, killed, tmp_path, damage, caplog):
    shutil.copytree(killed, tmp_path, dirs_exist_ok=True)
    DAMAGES[damage](tmp_path / "turn_000000.npz")
    assert_ends_as(whole, model, start, tmp_path, 1)
    assert "turn_000000.npz: is missing or damaged" in caplog.text


def test_artefacts_and_exports_say_what_the_student_went_through(whole, start, tmp_path):
    """Saved again, too."""
    for folder in ("first", "second"):
        q = psaq_jax.load_quantized(tmp_path / "first") if folder == "second" else whole.model
        psaq_jax.save_quantized(q, tmp_path / folder)
        assert psaq_jax.load_quantized(tmp_path / folder).distillations == (SHORT,)
        card = " ".join((tmp_path / folder / "README.md").read_text().split())
        assert "Quantization-aware training without data" in card
        assert "by recipe default. Distillation: cycles 2, generator\\_iterations 3" in card
        assert "Recipe: default, then distillation." in card and "kernel\\_rate 0\\.0003" in card
    record = json.loads((tmp_path / "first" / "config.json").read_text())["quantization_config"]
    assert record["distillations"] == [dataclasses.asdict(SHORT)]
    write_description(tmp_path, whole.model, "onnx", [], {})
    described = json.loads((tmp_path / "export.json").read_text())
    assert described["quantization"]["distillations"] == [dataclasses.asdict(SHORT)]
    card = (psaq_jax.save_quantized(start, tmp_path / "start") / "README.md").read_text()
    assert "Post-training quantization by" in card and "istillation" not in card


def test_a_student_s_student_has_both_trainings(model, whole):
    config = DistillationConfig(cycles=1, generator_iterations=0, student_steps=1, batch_size=4, mixing=0.5)
    assert distill(model, whole.model, IMAGES, config).model.distillations == (SHORT, config)


def test_bfloat16_passes_leave_a_float32_model(model, start):
    result = distill(model.with_dtype(jnp.bfloat16), start, IMAGES, SHORT)
    assert result.model.module.dtype == jnp.float32
    assert all(leaf.dtype in (np.float32, np.int8) for leaf in leaves(result.model))
    assert np.isfinite(result.model(IMAGES)).all()


def test_each_step_is_compiled_once_whatever_the_seed_and_the_weights(model, start):
    loop.student_step.clear_cache(), loop.generator_step.clear_cache()
    distill(model, start, IMAGES, SHORT)
    distill(model, start, IMAGES, dataclasses.replace(SHORT, mixing=0.0, kernel_rate=0.01), seed=3)
    assert (loop.student_step._cache_size(), loop.generator_step._cache_size()) == (1, 1)


def test_a_loss_that_is_not_finite_names_the_step(model, start):
    broken = dataclasses.replace(model, params=jax.tree.map(lambda x: x * np.nan, model.params))
    with pytest.raises(InputError, match="generator/.* is not finite at step 1"):
        distill(broken, start, IMAGES, SHORT)


BAD = {
    "cycles": ({"cycles": 0}, "cycles is 0"),
    "steps": ({"student_steps": 2.5}, "student_steps is 2.5"),
    "mixing": ({"mixing": 1.5}, "mixing is 1.5"),
    "rate": ({"kernel_rate": -1.0}, "kernel_rate is -1.0"),
    "weight": ({"discrepancy_weight": float("nan")}, "discrepancy_weight is nan"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_settings_name_the_field(name):
    settings, message = BAD[name]
    with pytest.raises(InputError, match=f"distillation.{message}"):
        DistillationConfig(**settings)


def test_jobs_start_from_recipe_default_on_synthesized_images():
    with pytest.raises(InputError, match="quantization.recipe is 'paper'"):
        DistillationJob("m", calibration=("synthesized",))


def test_images_of_another_shape(model, start):
    with pytest.raises(InputError, match="expected one or more of 32x32x3"):
        distill(model, start, IMAGES[:, :16])
