"""Turns over devices: what stays and what changes from tick to tick, and one tick.

A tick is one iteration of the generator's images or one step of the student. What happens in it follows from the seed,
its number and the state before it. The images of a batch are shared out over the devices, all else is on each of them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from psaq_jax import meshes
from psaq_jax.distillation.config import DistillationConfig
from psaq_jax.distillation.loop import adam, generator_config, generator_step, rates, student_step, weights
from psaq_jax.distillation.student import Grids, Learned, start, units
from psaq_jax.models.model import Model
from psaq_jax.quantization.preparation import as_rounded
from psaq_jax.quantization.transform import QuantizedModel
from psaq_jax.synthesis.config import SynthesisConfig
from psaq_jax.synthesis.loop import GroupState, initial_group, shown
from psaq_jax.synthesis.passes import prepared

FIRST_GROUP = 2**20  # the turns' groups have numbers, and so noise, that no group of a synthesis of fewer has
STUDENT = FIRST_GROUP - 1  # and this is the number of the student's own noise


class Competition(NamedTuple):
    """What changes from tick to tick."""

    learned: Learned
    moments: optax.OptState  # Adam's, of the student
    group: GroupState  # the generator's images


class Arena(NamedTuple):
    """What stays."""

    teacher: Model  # in the student's bases, as its kernels and blocks' outputs are compared
    original: Model  # the same function as the synthesis takes it: the generator goes by its attention outputs
    grids: Grids
    rates: Learned  # of Adam, in each parameter's own measure
    config: DistillationConfig
    synthesis: SynthesisConfig  # of one turn's images
    seed: int
    placement: meshes.Placement  # images over devices


def enter(
    model: Model, q: QuantizedModel, images: np.ndarray, config: DistillationConfig, synthesis: SynthesisConfig,
    seed: int, devices,
) -> tuple[Arena, Competition]:  # fmt: skip
    """The state before tick 0, on the most of the devices that divide the batch.

    Raises:
      InputError: a model that `q` was not made of, or images, where its bases follow from them.
    """
    placement = meshes.over_divisors(devices, config.batch_size)
    bits = min(bits for _, bits in q.kernel_bits), q.activation_bits
    teacher = as_rounded(model.with_dtype(q.module.dtype), images, q.options, *bits)
    teacher = teacher.with_dtype(model.module.dtype)
    grids, learned = start(teacher, q)
    student = grids, rates(config, units(grids, learned)), learned, adam.init(learned)
    original = prepared(model, synthesis, devices[0])
    models, (grids, steps, learned, moments) = jax.device_put(((teacher, original), student), placement.everywhere)
    turn = generator_config(config, synthesis)
    arena = Arena(*models, grids, steps, config, turn, seed, placement)
    return arena, Competition(learned, moments, noise(arena, 0))


def place(config: DistillationConfig, tick: int) -> tuple[int, int, bool]:
    """(turn, how far into its stage, whether it is the student's stage)."""
    turn, i = divmod(tick, config.turn_length)
    learns = i >= config.generator_iterations
    return turn, i - config.generator_iterations * learns, learns


def generate(arena: Arena, state: Competition, turn: int, i: int) -> tuple[Competition, dict]:
    """Iteration `i` of a turn's images."""
    group = noise(arena, turn) if i == 0 else state.group
    group, terms = generator_step(
        arena.original, arena.grids, state.learned, arena.synthesis, jnp.float32(arena.config.discrepancy_weight),
        group, jnp.int32(i),
    )  # fmt: skip
    return state._replace(group=_shared_out(arena, group)), terms


def learn(arena: Arena, state: Competition, pool: list[np.ndarray], turn: int, i: int) -> tuple[Competition, dict]:
    """Step `i` of the student in a turn, on images of the pool: those of the start, then one array a turn."""
    step = turn * arena.config.student_steps + i
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(arena.seed), STUDENT), step)
    images = jax.device_put(draw(pool, arena.config, (arena.seed, step)), arena.placement.shares)
    learned, moments, terms = student_step(
        arena.teacher, arena.grids, arena.rates, weights(arena.config, step), state.learned, state.moments, images, key
    )
    return state._replace(learned=learned, moments=moments), terms


def made(arena: Arena, state: Competition) -> np.ndarray:
    """The generator's images as they are now."""
    return np.asarray(jax.jit(shown, static_argnums=1)(arena.original, arena.synthesis, state.group.variables))


def draw(pool: list[np.ndarray], config: DistillationConfig, seeds) -> np.ndarray:
    """A batch of the pool's images, all of them or the newest turn's; none twice while there are enough."""
    sets = pool if config.memory else pool[-1:]
    ends = np.cumsum([len(images) for images in sets])
    size, count = config.batch_size, int(ends[-1])
    rows = np.random.default_rng(seeds).choice(count, size, replace=count < size)
    which = np.searchsorted(ends, rows, side="right")
    return np.stack([sets[s][row - ends[s]] for s, row in zip(which, rows, strict=True)])


def noise(arena: Arena, turn: int) -> GroupState:
    """The generator's start of a turn."""
    return _shared_out(arena, initial_group(arena.original, arena.synthesis, arena.seed, FIRST_GROUP + turn))


def _shared_out(arena: Arena, group: GroupState) -> GroupState:
    shares, everywhere = arena.placement
    places = jax.tree.map(lambda x: shares if x.ndim == group.variables.ndim else everywhere, group)
    return jax.device_put(group, places)


def leaves(state: Competition) -> dict[str, np.ndarray]:
    """The state's arrays by number; the group's key, labels and target follow from the seed."""
    return {f"{i:05d}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(_saved(state)))}


def restored(arena: Arena, state: Competition, arrays: dict[str, np.ndarray], turn: int) -> Competition:
    """The inverse of `leaves`: a state of that turn, with the structure of `state`."""
    found = [np.asarray(arrays[name]) for name in sorted(arrays)]
    learned, moments, variables, group_moments = jax.tree.unflatten(jax.tree.structure(_saved(state)), found)
    learned, moments = jax.device_put((learned, moments), arena.placement.everywhere)
    group = noise(arena, turn)._replace(variables=variables, adam=group_moments)
    return Competition(learned, moments, _shared_out(arena, group))


def _saved(state: Competition):
    return state.learned, state.moments, state.group.variables, state.group.adam
