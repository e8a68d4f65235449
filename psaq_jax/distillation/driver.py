"""`distill`: generator and student take turns, with progress and checkpoints; killed, it ends with the same bits."""

import dataclasses
import pathlib
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from psaq_jax import resumption
from psaq_jax.checks import check_seed
from psaq_jax.checksums import checksum
from psaq_jax.distillation import turns
from psaq_jax.distillation.config import DistillationConfig
from psaq_jax.distillation.history import History
from psaq_jax.distillation.student import finish
from psaq_jax.distillation.turns import Arena, Competition
from psaq_jax.errors import InputError
from psaq_jax.models.model import Model, check_float_model, in_float32
from psaq_jax.progress import Progress
from psaq_jax.quantization.calibration import check_pixels
from psaq_jax.quantization.transform import QuantizedModel, check_same_architecture
from psaq_jax.synthesis.checkpointing import Checkpoints
from psaq_jax.synthesis.config import SynthesisConfig

LOOK = 25  # ticks between two looks for NaN


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


@in_float32
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
      images: [n, height, width, 3] normalised, synthesized: those that `q` was made of, and what the student learns on
        before the first turn's images.
      synthesis: what the generator's images share with calibration images: priors, jitter, rate.
      seed: of everything random; equal seeds give equal models on one kind and number of devices.
      progress: called as progress(ticks done, ticks in all).
      devices: default: the most local devices that divide the batch. The images of a batch are shared out; the last
        bits depend on the number of devices.
      checkpoints: where to keep the state, and to go on from; of these models, images, settings and seed alone.
    Raises:
      InputError: images of another shape, or others than `q` was made of where its bases are theirs, a student of
        another architecture, checkpoints of other models, images, settings or seed, or a loss that stopped being
        finite.
      TryAgain: checkpoints that the system cannot read now. With checkpoints a signal ends the process (143, 130).
    """
    config = DistillationConfig() if config is None else config
    if not isinstance(config, DistillationConfig):
        raise InputError(f"config is {type(config).__name__}, expected a DistillationConfig")
    check_float_model(model, "distill")
    check_same_architecture(model, q, "distill")
    check_seed(seed)
    images = check_pixels(model, images)
    devices, synthesis = tuple(devices or jax.local_devices()), synthesis or SynthesisConfig(recipe="default")
    if checkpoints:
        given = {"model": model.fingerprint(), "student": q.fingerprint(), "images": checksum(images)}
        settings = {"distillation": dataclasses.asdict(config), "synthesis": dataclasses.asdict(synthesis)}
        checkpoints.belong_to(given | settings | {"seed": int(seed)})
    arena, state = turns.enter(model, q, images, config, synthesis, seed, devices)
    first, state, pool, history = _resumed(arena, state, images, checkpoints)
    began = time.perf_counter()
    for tick in range(first, config.ticks):
        turn, i, learns = turns.place(config, tick)
        if learns:
            state, terms = turns.learn(arena, state, pool, turn, i)
        else:
            state, terms = turns.generate(arena, state, turn, i)
        history.add("student" if learns else "generator", terms)
        if not learns and i == config.generator_iterations - 1:
            pool.append(turns.made(arena, state))
            if checkpoints:
                resumption.write_npz(_turn_file(checkpoints, turn), {"images": pool[-1]})
        _look(tick + 1, config.ticks, state, history, checkpoints)
        if progress:
            progress(tick + 1, config.ticks)
    grids, learned = jax.tree.map(jnp.asarray, jax.device_get((arena.grids, state.learned)))
    seconds = time.perf_counter() - began
    student = dataclasses.replace(finish(q, grids, learned), distillations=(*q.distillations, config))
    return DistillationResult(student, np.concatenate(pool), history.arrays(), seconds)


def _resumed(arena: Arena, state: Competition, images: np.ndarray, checkpoints: Checkpoints | None):
    """(ticks done, state, pool, history): of the last checkpoint, or of the start where that, or a turn, is damaged."""
    start = 0, state, [images], History()
    tree = checkpoints.restore_tree() if checkpoints else None
    if tree is None:
        return start
    done, config, pool = int(tree["tick"]), arena.config, []
    made = (done + config.student_steps) // config.turn_length if config.generator_iterations else 0
    for turn in range(made):
        kept = resumption.read_npz(_turn_file(checkpoints, turn))
        if kept is None:
            resumption.warn_damaged(_turn_file(checkpoints, turn))
            checkpoints.forget_tree()
            return start
        pool.append(kept["images"])
    state = turns.restored(arena, state, tree["leaves"], done // config.turn_length)
    return done, state, [images, *pool], History.from_tree(tree["history"])


def _look(done: int, ticks: int, state: Competition, history: History, checkpoints: Checkpoints | None) -> None:
    """Looks for NaN every now and then; saves when it is time, and leaves where SIGTERM came."""
    saves = checkpoints and (checkpoints.stopping() or checkpoints.due())
    if saves or done % LOOK == 0 or done == ticks:
        history.check()
    if saves:
        tree = {"tick": np.asarray(done), "leaves": turns.leaves(state), "history": history.tree()}
        checkpoints.save_tree(done, tree)
        checkpoints.leave_if_stopping()


def _turn_file(checkpoints: Checkpoints, turn: int) -> pathlib.Path:
    return checkpoints.directory / f"turn_{turn:06d}.npz"
