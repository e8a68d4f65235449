"""`distill`: generator and student take turns, over all devices, with progress and checkpoints.

Everything is counted in ticks: a tick is one iteration of the generator or one step of the student. What happens in a
tick follows from (seed, tick) and the state before it, so that a run which was killed ends with the same bits.
"""

import pathlib
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from psaq_jax import files
from psaq_jax.distillation.config import DistillationConfig
from psaq_jax.distillation.history import History
from psaq_jax.distillation.loop import adam, generator_config, generator_step, rates, student_step, weights
from psaq_jax.distillation.student import Grids, Learned, finish, start, units
from psaq_jax.models.model import Model
from psaq_jax.quantization.calibration import check_pixels
from psaq_jax.quantization.packing import kernel_bits
from psaq_jax.quantization.transform import QuantizedModel
from psaq_jax.synthesis.checkpointing import Checkpoints
from psaq_jax.synthesis.config import SynthesisConfig
from psaq_jax.synthesis.loop import GroupState, initial_group

FIRST_GROUP = 2**20  # the turns' groups have numbers, and so noise, that no group of the synthesis has
LOOK = 25  # ticks between two looks for NaN
Progress = Callable[[int, int], None]


class DistillationResult(NamedTuple):
    """What `distill` returns.

    Attributes:
      model: the student, rounded for good.
      images: [n, height, width, 3] float32, normalised: those that it started on, then those of every turn.
      history: {"generator/TERM" and "student/TERM": [ticks] float32}.
      seconds: wall time of this process' ticks.
    """

    model: QuantizedModel
    images: np.ndarray
    history: dict[str, np.ndarray]
    seconds: float


class Competition(NamedTuple):
    """What changes from tick to tick."""

    learned: Learned
    adam: optax.OptState  # of the student
    group: GroupState  # the generator's images


class Arena(NamedTuple):
    """What stays as it is, on the devices."""

    teacher: Model
    grids: Grids
    rates: Learned  # of Adam, in each parameter's own measure
    config: DistillationConfig
    synthesis: SynthesisConfig  # of one turn
    seed: int
    data: NamedSharding


def distill(
    model: Model,
    q: QuantizedModel,
    images,
    config: DistillationConfig | None = None,
    synthesis: SynthesisConfig | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    devices: tuple[jax.Device, ...] | None = None,
    checkpoints: Checkpoints | None = None,
) -> DistillationResult:
    """Data-free quantization-aware training: teacher and student compete (PSAQ-ViT V2, Li et al., TNNLS 2023).

    The code that the paper announces was never published, and we had its abstract and others' accounts of it. From
    there: a float teacher and a quantized student; images made from noise by patch-similarity entropy without labels,
    which enlarge the discrepancy of both, and a student that makes it small, turn by turn; the mean absolute error as
    the discrepancy. Ours: everything that `DistillationConfig` says V2 has no such thing of, Adam's rates, and a start
    from recipe "default".

    Args:
      model: the teacher; its dtype is that of both models' passes.
      q: the student's start: the same architecture, quantized.
      images: [n, height, width, 3] normalised, synthesized: what the student learns on before the first turn's images.
      synthesis: what the generator's images share with calibration images: priors, jitter, rate.
      seed: of everything random; equal seeds give equal models on one kind and number of devices.
      progress: called as progress(ticks done, ticks in all).
      devices: default: the most local devices that divide the batch. The images of a batch are shared out.
      checkpoints: where to keep the state, and to go on from; of these models, images, settings and seed alone.
    Raises:
      InputError: images of another shape, or a loss that stopped being finite.
    """
    config = config or DistillationConfig()
    pool = [check_pixels(model, images)]
    arena, state = _enter(model, q, config, synthesis or SynthesisConfig(recipe="default"), seed, devices)
    turn = config.generator_iterations + config.student_steps
    first, history = 0, History()
    tree = checkpoints.restore_tree() if checkpoints else None
    if tree is not None:
        first, history = int(tree["tick"]), History.from_tree(tree["history"])
        state = _restored(arena, state, tree["leaves"], first // turn)
        made = (first + config.student_steps) // turn if config.generator_iterations else 0
        pool += [np.load(_turn_file(checkpoints, number), allow_pickle=False) for number in range(made)]
    began = time.perf_counter()
    for tick in range(first, config.cycles * turn):
        cycle, i = divmod(tick, turn)
        if i < config.generator_iterations:
            state, terms = _generate(arena, state, cycle, i)
            history.add("generator", terms)
            if i == config.generator_iterations - 1:
                pool.append(np.asarray(state.group.images))
                if checkpoints:
                    files.write_npy(_turn_file(checkpoints, cycle), pool[-1])
        else:
            state, terms = _learn(arena, state, pool, cycle, i - config.generator_iterations)
            history.add("student", terms)
        done = tick + 1
        if done % LOOK == 0 or done == config.cycles * turn:
            history.check()
        if checkpoints and (checkpoints.stopping() or checkpoints.due()):
            history.check()
            checkpoints.save_tree(done, {"tick": np.asarray(done), "leaves": _leaves(state), "history": history.tree()})
            checkpoints.leave_if_stopping()
        if progress:
            progress(done, config.cycles * turn)
    learned = jax.tree.map(jnp.asarray, jax.device_get(state.learned))
    student = finish(q, arena.grids, learned)
    return DistillationResult(student, np.concatenate(pool), history.arrays(), time.perf_counter() - began)


def _enter(model, q, config, synthesis, seed, devices) -> tuple[Arena, Competition]:
    devices = tuple(devices or jax.local_devices())
    count = max(n for n in range(1, len(devices) + 1) if config.batch_size % n == 0)
    mesh = Mesh(np.asarray(devices[:count]), ("data",))
    data, everywhere = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    grids, learned = start(q, kernel_bits(q))
    student = grids, rates(config, units(grids, learned)), learned, adam.init(learned)
    teacher, (grids, steps, learned, moments) = jax.device_put((model, student), everywhere)
    turn = generator_config(config, synthesis, config.batch_size)
    arena = Arena(teacher, grids, steps, config, turn, seed, data)
    return arena, Competition(learned, moments, _noise(arena, 0))


def _noise(arena: Arena, cycle: int) -> GroupState:
    """The generator's start of a turn."""
    return _shared_out(arena, initial_group(arena.teacher, arena.synthesis, arena.seed, FIRST_GROUP + cycle))


def _shared_out(arena: Arena, group: GroupState) -> GroupState:
    """The group on the devices: images and Adam's moments in shares, the rest everywhere."""
    everywhere = NamedSharding(arena.data.mesh, PartitionSpec())
    shares = jax.tree.map(lambda x: arena.data if x.ndim == group.images.ndim else everywhere, group)
    return jax.device_put(group, shares)


def _generate(arena: Arena, state: Competition, cycle: int, i: int):
    group = _noise(arena, cycle) if i == 0 else state.group
    group, terms = generator_step(
        arena.teacher, arena.grids, state.learned, arena.synthesis, jnp.float32(arena.config.discrepancy_weight), group,
        jnp.int32(i),
    )  # fmt: skip
    return state._replace(group=group), terms


def _learn(arena: Arena, state: Competition, pool: list[np.ndarray], cycle: int, i: int):
    step = cycle * arena.config.student_steps + i
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(arena.seed), FIRST_GROUP), step)
    images = jax.device_put(draw(pool, arena.config, (arena.seed, step)), arena.data)
    learned, moments, terms = student_step(
        arena.teacher, arena.grids, arena.rates, weights(arena.config, step), state.learned, state.adam, images, key
    )
    return state._replace(learned=learned, adam=moments), terms


def draw(pool: list[np.ndarray], config: DistillationConfig, seeds) -> np.ndarray:
    """A batch of the pool's images, all of them or the newest turn's; none twice while there are enough."""
    sets = pool if config.memory else pool[-1:]
    ends = np.cumsum([len(images) for images in sets])
    size, count = config.batch_size, int(ends[-1])
    rows = np.random.default_rng(seeds).choice(count, size, replace=count < size)
    which = np.searchsorted(ends, rows, side="right")
    return np.stack([sets[s][row - ends[s]] for s, row in zip(which, rows, strict=True)])


def _turn_file(checkpoints: Checkpoints, cycle: int) -> pathlib.Path:
    return checkpoints.directory / f"turn_{cycle:06d}.npy"


def _leaves(state: Competition) -> dict[str, np.ndarray]:
    """The state's arrays by number; the generator's key, labels and target follow from the seed."""
    kept = (state.learned, state.adam, state.group.images, state.group.adam)
    return {f"{i:05d}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(kept))}


def _restored(arena: Arena, state: Competition, leaves: dict, cycle: int) -> Competition:
    kept = (state.learned, state.adam, state.group.images, state.group.adam)
    arrays = [np.asarray(leaves[name]) for name in sorted(leaves)]
    learned, moments, images, group_moments = jax.tree.unflatten(jax.tree.structure(kept), arrays)
    learned, moments = jax.device_put((learned, moments), NamedSharding(arena.data.mesh, PartitionSpec()))
    group = _noise(arena, cycle)._replace(images=images, adam=group_moments)
    return Competition(learned, moments, _shared_out(arena, group))
