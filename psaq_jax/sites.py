"""The one instrument: named sites in a model, and the interceptors that record, observe or replace their tensors.

A model names each tensor that somebody may want by passing it through a `Site`, which is the identity. A *tap* sees
every site of one forward pass, in running order, by its path ("block_0/attention/qkv_output"), and may replace the
tensor. Taps are closures that live for one trace, so they compose with jit, grad and vmap and leave no state behind.
"""

import fnmatch
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

Tap = Callable[[str, jax.Array], jax.Array]
See = Callable[[str, nn.Module, tuple, Callable[[], jax.Array]], jax.Array]
Ranges = dict[str, tuple[jax.Array, jax.Array]]


class Site(nn.Module):
    """A named tensor of a model: the identity, unless a tap says otherwise."""

    def __call__(self, x):
        return x


def intercepted(see: See):
    """Inside, `see(name, module, args, run)` stands for every call of a module, whose output `run()` gives."""

    def interceptor(next_fun, args, kwargs, context):
        if context.method_name != "__call__":
            return next_fun(*args, **kwargs)
        return see("/".join(context.module.path), context.module, args, lambda: next_fun(*args, **kwargs))

    return nn.intercept_methods(interceptor)


def apply_with_tap(module: nn.Module, params, pixels, tap: Tap):
    """Runs `module` with `tap(name, x) -> x` applied at every site; returns the module's output."""

    def see(name, called, args, run):
        return tap(name, run()) if isinstance(called, Site) else run()

    with intercepted(see):
        return module.apply({"params": params}, pixels)


def record(module: nn.Module, params, pixels, pattern: str):
    """Runs `module` and keeps the tensors of the sites that match a shell pattern.

    Args:
      pattern: such as "*/attention_output", matched against the whole site name.
    Returns:
      (output, {site name: tensor}), the dictionary in running order.
    Raises:
      ValueError: the pattern matches no site of this model.
    """
    kept, names = {}, []

    def tap(name, x):
        names.append(name)
        if fnmatch.fnmatchcase(name, pattern):
            kept[name] = x
        return x

    output = apply_with_tap(module, params, pixels, tap)
    if not kept:
        raise ValueError(f"no site matches {pattern!r}; the sites of this model are {', '.join(names)}")
    return output, kept


def observe(module: nn.Module, params, pixels, wanted: Callable[[str], bool] = lambda name: True) -> Ranges:
    """Runs `module` once and returns {site: (minimum, maximum)} as float32 scalars, in running order."""
    ranges = {}

    def tap(name, x):
        if wanted(name):
            ranges[name] = (jnp.min(x).astype(jnp.float32), jnp.max(x).astype(jnp.float32))
        return x

    apply_with_tap(module, params, pixels, tap)
    return ranges


def site_names(module: nn.Module, params, image_shape: tuple[int, int, int]) -> tuple[str, ...]:
    """The names of all sites in running order; nothing is computed (abstract evaluation, once a model)."""
    leaves, structure = jax.tree.flatten(params)
    return _site_names(module, structure, tuple((x.shape, x.dtype) for x in leaves), image_shape)


@functools.lru_cache(maxsize=16)
def _site_names(module, structure, shapes, image_shape) -> tuple[str, ...]:
    names = []

    def tap(name, x):
        names.append(name)
        return x

    params = jax.tree.unflatten(structure, [jax.ShapeDtypeStruct(*shape) for shape in shapes])
    pixels = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    jax.eval_shape(lambda p, x: apply_with_tap(module, p, x, tap), params, pixels)
    return tuple(names)
