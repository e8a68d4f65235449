"""The chunks of a synthesis: scans of some iterations, compiled ahead of time, between which it can be stopped."""

import functools
import time

import jax
import jax.numpy as jnp

from psaq_jax import meshes
from psaq_jax.synthesis.config import SynthesisConfig
from psaq_jax.synthesis.loop import scan_chunk

LONGEST_CHUNK = 25


class CompileTime:
    """Wall time of compilation in this process."""

    def __init__(self):
        self.seconds = 0.0


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


def compiled(model, state, config, length, placement, compiling: CompileTime):
    """The compiled chunk; what compiling it took just now is added to `compiling`."""
    leaves, structure = jax.tree.flatten((model, state))
    shapes = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
    misses = compile_chunk.cache_info().misses
    began = time.perf_counter()
    run = compile_chunk(config, length, placement, structure, shapes)
    if compile_chunk.cache_info().misses > misses:
        compiling.seconds += time.perf_counter() - began
    return run


@functools.lru_cache(maxsize=16)
def compile_chunk(config: SynthesisConfig, length: int, placement: meshes.Placement, structure, shapes):
    """Compiles one chunk of one wave, ahead of time: the same for any weights, seed and images of these shapes."""
    shares, everywhere = placement

    def one_device(model, state, start):
        group = jax.tree.map(lambda x: x[0], state)
        group, terms = scan_chunk(model, config, group, start, length)
        return jax.tree.map(lambda x: x[None], (group, terms))

    sharded = jax.shard_map(
        one_device, mesh=shares.mesh, in_specs=(everywhere.spec, shares.spec, everywhere.spec), out_specs=shares.spec,
        check_vma=False,
    )  # fmt: skip
    model, state = jax.tree.unflatten(structure, [jax.ShapeDtypeStruct(*shape) for shape in shapes])
    model = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), model)
    state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shares), state)
    return jax.jit(sharded, donate_argnums=1).lower(model, state, jax.ShapeDtypeStruct((), jnp.int32)).compile()
