"""QDrop (Wei et al., ICLR 2022): which elements of a block's inputs and sites are quantized in a step, others not.

What is drawn is no part of the compiled step: it would take twice as long to compile as all the rest of it.
"""

import functools

import jax

from psaq_jax.quantization.segments import Segment, parts_of

INPUTS = "inputs"


def shapes(segment: Segment, params: dict, sites, x: jax.Array) -> dict[str, tuple[int, ...]]:
    """{one of the sites, in running order: its shape for the inputs x; `INPUTS`: that of x}."""
    of_one = parts_of(segment, params, x).sites
    return {name: (len(x) * n, *rest) for name, (n, *rest) in of_one.items() if name in sites} | {INPUTS: x.shape}


def draw(key: jax.Array, shapes: dict[str, tuple[int, ...]]) -> dict[str, jax.Array]:
    """{name: bool of its shape}, half of the elements: those that are quantized."""
    key_inputs, key_sites = jax.random.split(key)
    sites = (name for name in shapes if name != INPUTS)
    keys = {name: jax.random.fold_in(key_sites, number) for number, name in enumerate(sites, 1)} | {INPUTS: key_inputs}
    return {name: _half(keys[name], shape) for name, shape in shapes.items()}


@functools.partial(jax.jit, static_argnames="shape")
def _half(key, shape):
    return jax.random.bernoulli(key, 0.5, shape)
