"""What one tick of the distillation does: its losses, rates, jitter and draws, each as its docstring says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import psaq_jax
from psaq_jax.distillation import loop, turns
from psaq_jax.distillation.config import DistillationConfig
from psaq_jax.distillation.student import Learned, units
from tests.golden_files import reference_vit

pytestmark = pytest.mark.usefixtures("quickly_compiled")

CONFIG = DistillationConfig(
    cycles=2, generator_iterations=2, student_steps=20, batch_size=4, discrepancy_weight=3.0,
    generator_cross_entropy=0.25, feature_weight=0.5, kernel_rate=0.003, scale_rate=0.005, float_rate=0.007,
)  # fmt: skip
IMAGES = np.random.default_rng(0).normal(size=(16, 32, 32, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def entered():
    """(arena, state before the first tick) of a model of one block."""
    model = reference_vit(1)
    q = psaq_jax.quantize(model, psaq_jax.calibrate(model, IMAGES, recipe="default"), 4, 4, "default")
    return turns.enter(
        model, q, IMAGES, CONFIG, psaq_jax.SynthesisConfig(recipe="default"), 1, tuple(jax.devices()[:1])
    )


def test_the_discrepancy_is_the_mean_absolute_error():
    teacher, student = jnp.array([[1.0, -2.0]]), jnp.array([[3.0, 2.0]])
    assert loop.discrepancy(teacher, student) == loop.discrepancy(student, teacher) == 3.0


def test_the_generators_loss_is_the_sum_of_its_weighted_terms(entered):
    arena, state = entered
    _, terms = turns.generate(arena, state, 0, 0)
    variation = arena.synthesis.total_variation_weight * terms["total_variation"]
    expected = terms["entropy"] + 0.25 * terms["cross_entropy"] + variation - 3.0 * terms["discrepancy"]
    np.testing.assert_allclose(terms["loss"], expected, rtol=1e-5, atol=1e-5 * variation)  # terms of both signs
    assert min(terms["cross_entropy"], terms["discrepancy"]) > 0.01 * abs(terms["loss"]), "each of them counts"


def test_v2_s_generator_has_no_labels():
    assert loop.generator_config(DistillationConfig(), psaq_jax.SynthesisConfig()).cross_entropy_weight == 0


def test_the_student_s_step_is_as_long_as_each_kind_s_rate_and_its_loss_counts_blocks(entered):
    """Adam's first step against a gradient that is not tiny is 1, here in each parameter's own measure."""
    arena, state = entered
    before = jax.tree.map(np.array, state.learned)
    after, terms = turns.learn(arena, jax.tree.map(jnp.copy, state), [IMAGES], 0, 3)  # the peak: 4 of 40 rise
    np.testing.assert_allclose(terms["loss"], terms["discrepancy"] + 0.5 * terms["features"], rtol=1e-6)
    assert terms["features"] > 0.01 * terms["discrepancy"]
    moves = jax.tree.map(lambda a, b, u: np.max(np.abs(a - b) / u), after.learned, before, units(arena.grids, before))
    found = Learned(*(max(kind.values()) for kind in moves))
    expected = Learned(kernels=0.003, kernel_scales=0.005, site_scales=0.005, floats=0.007)
    np.testing.assert_allclose(found, expected, rtol=1e-3)  # differences of float32 parameters


def test_rates_rise_for_a_tenth_and_fall_to_nothing():
    config = DistillationConfig(cycles=4, student_steps=25)
    rates = np.array([loop.weights(config, step).rate for step in range(100)])
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) / 10, rtol=1e-6)
    np.testing.assert_allclose(rates[10:], (1 + np.cos(np.pi * np.arange(90) / 90)) / 2, rtol=1e-5, atol=1e-7)


def test_augment_moves_the_batch_by_up_to_its_reach_and_flips_half_of_the_time():
    """30 pixels at 224 are 4 at 28, down and right alike."""
    images = jnp.zeros((2, 28, 28, 3)).at[:, 14, 14].set(1)
    move = jax.jit(jax.vmap(lambda key: loop.augment(images, key, 0.0)))
    moved = np.asarray(move(jax.random.split(jax.random.key(0), 400)))
    assert (np.sum(moved, axis=(2, 3, 4)) == 3).all() and (moved[:, 0] == moved[:, 1]).all()
    pixel = np.argmax(np.reshape(moved[:, 0, ..., 0], (400, -1)), axis=1)
    down, right = pixel // 28 - 14, pixel % 28 - 14
    flipped = right != down
    assert (right[flipped] == -1 - down[flipped]).all(), "27 - column, of the rolled image"
    assert set(down) == set(range(-4, 5)) and 0.4 < flipped.mean() < 0.6


def test_augment_keeps_what_is_alike_and_blends():
    same = jnp.ones((4, 28, 28, 3))
    np.testing.assert_allclose(loop.augment(same, jax.random.key(0), 0.5), same, rtol=1e-6)
    steps = jnp.arange(4.0)[:, None, None, None] * same
    assert set(np.unique(loop.augment(steps, jax.random.key(0), 0.0))) == {0.0, 1.0, 2.0, 3.0}
    blended = np.unique(np.asarray(loop.augment(steps, jax.random.key(0), 1.0))[:, 0, 0, 0])
    assert not set(blended) <= {0.0, 1.0, 2.0, 3.0}


def test_steps_draw_anew(entered, monkeypatch):
    """Other rows, another jitter and the rate of that step: within a turn, and from turn to turn."""
    arena, state = entered
    seen = []

    def step(teacher, grids, rates, weights, learned, moments, images, key):
        seen.append((images.tobytes(), jax.random.key_data(key).tobytes(), float(weights.rate)))
        return learned, moments, {}

    monkeypatch.setattr(turns, "student_step", lambda *args: step(*args[:-2], np.asarray(args[-2]), args[-1]))
    for turn, i in ((0, 0), (0, 1), (0, 19), (1, 0), (1, 1)):
        turns.learn(arena, state, [IMAGES], turn, i)
    rows, keys, rates = zip(*seen, strict=True)
    assert len(set(rows)) == len(set(keys)) == 5
    np.testing.assert_allclose(rates, [loop.weights(CONFIG, step).rate for step in (0, 1, 19, 20, 21)], rtol=1e-6)


def test_each_turn_starts_from_noise_of_its_own(entered, monkeypatch):
    """Its further iterations go on from the one before."""
    arena, state = entered
    monkeypatch.setattr(turns, "generator_step", lambda *args: (args[-2]._replace(target=args[-2].target + 1), {}))
    starts = [turns.generate(arena, state, turn, 0)[0] for turn in range(3)]
    for name in ("variables", "key", "target"):
        found = {jax.random.key_data(x).tobytes() if name == "key" else np.asarray(x).tobytes()
                 for x in (getattr(start.group, name) for start in starts)}  # fmt: skip
        assert len(found) == 3, name
    again, further = turns.generate(arena, state, 1, 0)[0], turns.generate(arena, starts[1], 1, 1)[0]
    np.testing.assert_array_equal(again.group.variables, starts[1].group.variables)
    np.testing.assert_array_equal(further.group.variables, starts[1].group.variables)
    assert further.group.target == starts[1].group.target + 1


def test_draws_from_the_newest_turn_or_from_all():
    pool = [np.full((3, 1, 1, 3), 0.0), np.full((5, 1, 1, 3), 1.0)]
    everything = turns.draw(pool, DistillationConfig(batch_size=8), (0, 1))
    assert everything.shape == (8, 1, 1, 3) and everything[:, 0, 0, 0].sum() == 5, "each image once"
    newest = turns.draw(pool, DistillationConfig(batch_size=8, memory=False), (0, 1))
    assert (newest == 1).all()
