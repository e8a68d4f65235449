"""`synthesize`: groups of images in waves over the devices, chunk by chunk, with progress and checkpoints."""

import functools
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from psaq_jax.errors import InputError
from psaq_jax.models.model import Model
from psaq_jax.synthesis.checkpointing import Checkpoints, WaveProgress
from psaq_jax.synthesis.config import SynthesisConfig
from psaq_jax.synthesis.loop import TERMS, GroupState, initial_group, scan_chunk

LONGEST_CHUNK = 25
Progress = Callable[[int, int], None]


class SynthesisError(InputError):
    """The loss or an image stopped being finite."""


class SynthesisResult(NamedTuple):
    """What `synthesize` returns.

    Attributes:
      images: [n, height, width, 3] float32, normalised, un-jittered, in the order of their groups.
      labels: [n] int32, the classes that they were made to show.
      history: {"loss", "entropy", "cross_entropy", "total_variation": [iterations] float32}, means over groups.
      seconds: wall time of the loop, over all processes that had a part in it, without compilation.
      compile_seconds: of this process.
      seconds_per_iteration: wall time of one iteration of one group on each device.
    """

    images: np.ndarray
    labels: np.ndarray
    history: dict[str, np.ndarray]
    seconds: float
    compile_seconds: float
    seconds_per_iteration: float


class Stopwatch:
    """Wall time of compilation in this process."""

    def __init__(self):
        self.compile_seconds = 0.0


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
      SynthesisError: naming the iteration and the term that turned NaN or infinite.
    """
    config = config or SynthesisConfig()
    devices = tuple(devices or jax.local_devices())[: config.groups]
    sharding = NamedSharding(Mesh(np.asarray(devices), ("data",)), PartitionSpec("data"))
    waves = [range(i, i + len(devices)) for i in range(0, config.groups, len(devices))]
    watch, parts, total = Stopwatch(), [], len(waves) * config.iterations
    for number, wave in enumerate(waves):
        finished = checkpoints.finished_wave(number) if checkpoints else None
        if finished is None:
            tell = progress and (lambda done, n=number: progress(n * config.iterations + done, total))
            finished = _run_wave(model, config, seed, number, wave, sharding, watch, tell, checkpoints)
            if checkpoints:
                checkpoints.finish_wave(number, finished)
        real = min(config.groups - wave.start, len(devices))  # the last wave may hold groups to spare
        parts.append({name: v if name == "seconds" else v[:real] for name, v in finished.items()})
    seconds = float(sum(part.pop("seconds").item() for part in parts))
    merged = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return SynthesisResult(
        images=merged["images"].reshape(config.num_images, *model.image_shape),
        labels=merged["labels"].reshape(-1),
        history={name: merged[name].mean(axis=0) for name in TERMS},
        seconds=seconds,
        compile_seconds=watch.compile_seconds,
        seconds_per_iteration=seconds / (len(waves) * config.iterations),
    )


def _run_wave(model, config, seed, number, wave, sharding, watch, tell, checkpoints) -> dict[str, np.ndarray]:
    """One group on each device, from noise or its last checkpoint to the end: {images, labels, terms, seconds}."""
    state = _initial_wave(model, config, jnp.uint32(seed), jnp.asarray(wave), sharding)
    start, seconds, history = 0, 0.0, {name: np.zeros((len(wave), 0), np.float32) for name in TERMS}
    saved = checkpoints.restore() if checkpoints else None
    if saved and saved.wave == number:
        adam = state.adam._replace(**{k: jax.device_put(v, sharding) for k, v in saved.moments.items()})
        state = state._replace(images=jax.device_put(saved.images, sharding), adam=adam)
        start, seconds, history = saved.iteration, saved.seconds, saved.history
    for length in remaining_chunks(config.iterations, start):
        run = _compiled(model, state, config, length, sharding, watch)
        began = time.perf_counter()
        state, terms = run(model, state, jnp.int32(start))
        terms = jax.device_get(terms)
        seconds += time.perf_counter() - began
        check_finite(terms, start)
        history = {name: np.concatenate([history[name], terms[name]], axis=1) for name in TERMS}
        start += length
        if checkpoints and (checkpoints.stopping() or (start < config.iterations and checkpoints.due())):
            moments = {k: np.asarray(v) for k, v in state.adam._asdict().items()}
            checkpoints.save(WaveProgress(number, start, np.asarray(state.images), moments, history, seconds))
            checkpoints.leave_if_stopping()
        if tell:
            tell(start)
    images = np.asarray(state.images)
    if not np.isfinite(images).all():
        raise SynthesisError(f"synthesis stopped: the images are not finite after iteration {start}")
    return {"images": images, "labels": np.asarray(state.labels), "seconds": np.asarray(seconds), **history}


def chunk_lengths(iterations: int) -> list[int]:
    """Scans of at most 25 iterations that make up the whole: equal ones where a divisor allows, so one compilation."""
    divisors = [n for n in range(1, min(iterations, LONGEST_CHUNK) + 1) if iterations % n == 0]
    length = divisors[-1] if divisors[-1] * 5 >= min(iterations, LONGEST_CHUNK) else LONGEST_CHUNK
    full, rest = divmod(iterations, length)
    return [length] * full + [rest] * (rest > 0)


def remaining_chunks(iterations: int, start: int) -> list[int]:
    """The chunks of the whole from iteration `start` on, where a chunk begins."""
    lengths, done = chunk_lengths(iterations), 0
    while done < start:
        done += lengths.pop(0)
    return lengths


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


@functools.partial(jax.jit, static_argnames=("config", "sharding"))
def _initial_wave(model, config, seed, groups, sharding) -> GroupState:
    state = jax.vmap(lambda group: initial_group(model, config, seed, group))(groups)
    return jax.lax.with_sharding_constraint(state, sharding)


def _compiled(model, state, config, length, sharding, watch: Stopwatch):
    """The compiled chunk; what was spent on compiling it now goes on the stopwatch."""
    leaves, structure = jax.tree.flatten((model, state))
    shapes = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
    misses = compile_chunk.cache_info().misses
    began = time.perf_counter()
    run = compile_chunk(config, length, sharding, structure, shapes)
    if compile_chunk.cache_info().misses > misses:
        watch.compile_seconds += time.perf_counter() - began
    return run


@functools.lru_cache(maxsize=16)
def compile_chunk(config: SynthesisConfig, length: int, sharding, structure, shapes):
    """Compiles one chunk of one wave, ahead of time: the same for any weights, seed and images of these shapes."""
    mesh, spec = sharding.mesh, sharding.spec
    replicated = NamedSharding(mesh, PartitionSpec())

    def one_device(model, state, start):
        group = jax.tree.map(lambda x: x[0], state)
        group, terms = scan_chunk(model, config, group, start, length)
        return jax.tree.map(lambda x: x[None], (group, terms))

    sharded = jax.shard_map(
        one_device, mesh=mesh, in_specs=(PartitionSpec(), spec, PartitionSpec()), out_specs=spec, check_vma=False
    )
    model, state = jax.tree.unflatten(structure, [jax.ShapeDtypeStruct(*shape) for shape in shapes])
    model = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated), model)
    state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state)
    return jax.jit(sharded, donate_argnums=1).lower(model, state, jax.ShapeDtypeStruct((), jnp.int32)).compile()
