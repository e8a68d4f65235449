"""`synthesize`: groups of images in waves over the devices, chunk by chunk, with progress and checkpoints."""

import dataclasses
import functools
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from psaq_jax import distributed, meshes
from psaq_jax.checks import check_seed
from psaq_jax.errors import InputError
from psaq_jax.models.model import Model, check_float_model, in_float32
from psaq_jax.progress import Progress
from psaq_jax.synthesis.checkpointing import Checkpoints, WaveProgress
from psaq_jax.synthesis.chunks import CompileTime, compiled, remaining_chunks
from psaq_jax.synthesis.config import SynthesisConfig
from psaq_jax.synthesis.finished_groups import Part, first_groups
from psaq_jax.synthesis.loop import TERMS, GroupState, initial_group, shown
from psaq_jax.synthesis.passes import prepared

CHANGING = ("variables", "count", "mu", "nu")  # what a group's steps change


class SynthesisError(InputError):
    """The loss or an image stopped being finite."""


class SynthesisResult(NamedTuple):
    """What `synthesize` returns.

    Attributes:
      images: [n, height, width, 3] float32, normalised, un-jittered, in the order of their groups.
      labels: [n] int32, the classes that they were made to show.
      history: {"loss", "entropy", "cross_entropy", "total_variation": [iterations] float32}, means over groups.
      seconds: wall time of the loop, in this run and those before it that were killed, without compilation.
      compile_seconds: of this process.
      seconds_per_iteration: wall time of one iteration of one group on each device.
    """

    images: np.ndarray
    labels: np.ndarray
    history: dict[str, np.ndarray]
    seconds: float
    compile_seconds: float
    seconds_per_iteration: float


def synthesize(
    model: Model,
    config: SynthesisConfig | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    devices: tuple[jax.Device, ...] | None = None,
    checkpoints: Checkpoints | None = None,
) -> SynthesisResult:
    """Makes calibration images out of Gaussian noise, with no data (PSAQ-ViT, section 3.3, algorithm 1).

    Args:
      config: default: the paper's, `SynthesisConfig()`.
      seed: of everything random; equal seeds give equal images on one kind of device.
      progress: called as progress(iterations done, iterations in all, over all waves of groups).
      devices: default: all local devices; each takes one group at a time.
      checkpoints: where to keep the state, and to go on from; of this model, config and seed alone.
    Raises:
      InputError: no float model, an impossible seed, no space for checkpoints, or these of another model, config or
        seed.
      TryAgain: checkpoints that the system cannot read now. With checkpoints a signal ends the process (143, 130).
      SynthesisError: naming the iteration and the term that turned NaN or infinite.
    """
    config, compiling = SynthesisConfig() if config is None else config, CompileTime()
    if not isinstance(config, SynthesisConfig):
        raise InputError(f"config is {type(config).__name__}, expected a SynthesisConfig")
    parts = list(synthesize_parts(model, config, seed, progress, devices, checkpoints, compiling=compiling))
    return in_one(parts, compiling.seconds)


def in_one(parts: Sequence[Part], compile_seconds: float = 0.0) -> SynthesisResult:
    """The result of all groups of these parts."""
    seconds = float(sum(part["seconds"] for part in parts))
    merged = {name: np.concatenate([part[name] for part in parts]) for name in ("images", "labels", *TERMS)}
    return SynthesisResult(
        images=merged["images"].reshape(-1, *merged["images"].shape[2:]),
        labels=merged["labels"].reshape(-1),
        history={name: merged[name].mean(axis=0) for name in TERMS},
        seconds=seconds,
        compile_seconds=compile_seconds,
        seconds_per_iteration=seconds / (len(parts) * merged["loss"].shape[1]),
    )


def synthesize_parts(
    model: Model,
    config: SynthesisConfig,
    seed: int = 0,
    progress: Progress | None = None,
    devices: tuple[jax.Device, ...] | None = None,
    checkpoints: Checkpoints | None = None,
    first: int = 0,
    compiling: CompileTime | None = None,
) -> Iterator[Part]:
    """Yields all groups from number `first` on, in order and in parts: those that `checkpoints` hold, then new waves. A
    part that holds number `first` comes whole, with its groups before that.

    Memory holds one wave: a group on each device of each process. Arguments as `synthesize`; with several processes,
    all of them get all parts, and the checkpoints and `first` of process 0 count.
    """
    check_float_model(model, "synthesize")
    check_seed(seed)
    devices = tuple(devices or jax.local_devices())[: -(-config.groups // distributed.count())]
    distributed.check_same("the number of devices", str(len(devices)))
    placement, width = meshes.over(devices), len(devices) * distributed.count()
    if checkpoints:
        settings = dataclasses.asdict(dataclasses.replace(config, num_images=config.group_size))  # more may come later
        checkpoints.belong_to({"model": model.fingerprint(), "seed": int(seed), "synthesis": settings})
    model = jax.device_put(prepared(model, config, devices[0]), placement.everywhere)
    first = int(distributed.from_first({"first": np.int64(first)})["first"])
    for part in distributed.each_from_first(checkpoints.groups.read(first) if checkpoints else ()):
        if first >= config.groups:  # of a job of this folder that needed more of them
            return
        yield first_groups(part, config.groups - int(part["first"]))
        first = int(part["first"]) + len(part["images"])
    total = -(-config.groups // width) * config.iterations
    while first < config.groups:
        done = total - -(-(config.groups - first) // width) * config.iterations
        tell = progress and (lambda iteration, done=done: progress(done + iteration, total))
        wave = Wave(first, width, placement)
        part = _run_wave(model, config, seed, wave, compiling or CompileTime(), tell, checkpoints)
        part = first_groups(part, config.groups - first)
        if checkpoints:
            checkpoints.groups.keep(part)
        yield part
        first += width


class Wave(NamedTuple):
    """Groups `first` to `first + width - 1`, of which each process makes as many as it has devices, in order."""

    first: int
    width: int  # the last wave may hold groups to spare
    placement: meshes.Placement

    @property
    def own(self) -> slice:
        """The places in the wave of this process's groups."""
        share = self.width // distributed.count()
        return slice(share * distributed.index(), share * (distributed.index() + 1))


@in_float32
def _run_wave(model, config, seed, wave: Wave, compiling, tell, checkpoints) -> Part:
    """The groups of all processes, from noise or their last checkpoint to the end."""
    groups = np.arange(wave.first, wave.first + wave.width)[wave.own]
    state = _initial_wave(model, config, jnp.uint32(seed), jnp.asarray(groups), wave.placement)
    start, seconds, history = 0, 0.0, {name: np.zeros((len(groups), 0), np.float32) for name in TERMS}
    saved = checkpoints.restore(wave.first, wave.width) if checkpoints else None
    if saved:
        start, seconds = saved.iteration, saved.seconds
        own = {name: array[wave.own] for name, array in saved.arrays.items()}
        history = {name: own[name] for name in TERMS}
        state = _with_changed(state, {name: jax.device_put(own[name], wave.placement.shares) for name in CHANGING})
    for length in remaining_chunks(config.iterations, start):
        run = compiled(model, state, config, length, wave.placement, compiling)
        began = time.perf_counter()
        state, terms = run(model, state, jnp.int32(start))
        terms = jax.device_get(terms)
        seconds += time.perf_counter() - began
        check_finite(terms, start)
        history = {name: np.concatenate([history[name], terms[name]], axis=1) for name in TERMS}
        start += length
        if checkpoints:
            under_way = functools.partial(_progress, wave, start, seconds, state, history)
            checkpoints.meet(start < config.iterations, under_way)
        if tell:
            tell(start)
    images = np.asarray(_shown_wave(model, config, state.variables, wave.placement))
    if not np.isfinite(images).all():
        raise SynthesisError(f"synthesis stopped: the images are not finite after iteration {start}")
    arrays = _gathered({"images": images, "labels": state.labels, **history})
    return {"first": np.asarray(wave.first), "seconds": np.asarray(seconds), **arrays}


def _gathered(arrays) -> dict[str, np.ndarray]:
    return {name: distributed.gather(np.asarray(array)) for name, array in arrays.items()}


def _progress(wave: Wave, iteration: int, seconds: float, state: GroupState, history) -> WaveProgress:
    changing = {"variables": state.variables, **state.adam._asdict()}
    return WaveProgress(wave.first, iteration, seconds, _gathered(changing | history))


def _with_changed(state: GroupState, arrays: dict[str, jax.Array]) -> GroupState:
    moments = {name: array for name, array in arrays.items() if name != "variables"}
    return state._replace(variables=arrays["variables"], adam=state.adam._replace(**moments))


def check_finite(terms: dict[str, np.ndarray], start: int) -> None:
    """Raises SynthesisError for the first iteration (counted from 1) at which a term [groups, length] is not finite."""
    broken = {name: np.argmax(~np.isfinite(v).all(axis=0)) for name, v in terms.items() if not np.isfinite(v).all()}
    if broken:
        first = min(broken.values())
        names = [name for name in broken if broken[name] == first and name != "loss"] or ["loss"]
        raise SynthesisError(
            f"synthesis stopped: {', '.join(names)} is not finite at iteration {start + first + 1}; "
            "check the model's weights, or lower synthesis.learning_rate"
        )


@functools.partial(jax.jit, static_argnames=("config", "placement"))
def _initial_wave(model, config, seed, groups, placement) -> GroupState:
    state = jax.vmap(lambda group: initial_group(model, config, seed, group))(groups)
    return jax.lax.with_sharding_constraint(state, placement.shares)


@functools.partial(jax.jit, static_argnames=("config", "placement"))
def _shown_wave(model, config, variables, placement):
    images = jax.vmap(functools.partial(shown, model, config))(variables)
    return jax.lax.with_sharding_constraint(images, placement.shares)
