"""QDrop (Wei et al., ICLR 2022): which elements of a block's inputs and sites are quantized in a step, others not.

What is drawn is no part of the compiled step: it would take twice as long to compile as all the rest of it.
"""

import functools

import jax
from flax import traverse_util

from psaq_jax.quantization.segments import Segment

INPUTS = "inputs"


def shapes(segment: Segment, params: dict, sites, x: jax.Array) -> dict[str, tuple[int, ...]]:
    """{one of the sites: its shape for the inputs x, `INPUTS`: that of x}, in running order; params by path."""
    found = {INPUTS: x.shape}

    def tap(name, y):
        if name in sites:
            found[name] = y.shape
        return y

    jax.eval_shape(lambda params, x: segment(params, x, tap=tap), traverse_util.unflatten_dict(params, sep="/"), x)
    return found


def draw(key: jax.Array, shapes: dict[str, tuple[int, ...]]) -> dict[str, jax.Array]:
    """{name: bool of its shape}, half of the elements: those that are quantized."""
    key_inputs, key_sites = jax.random.split(key)
    keys = {name: jax.random.fold_in(key_sites, number) for number, name in enumerate(shapes)}
    return {name: _half(keys[name] if name != INPUTS else key_inputs, shape) for name, shape in shapes.items()}


@functools.partial(jax.jit, static_argnames="shape")
def _half(key, shape):
    return jax.random.bernoulli(key, 0.5, shape)
