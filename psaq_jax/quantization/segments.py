"""A model as a chain of segments, so that calibration streams activations through one block at a time.

A segment is a transformer block, or what lies between two blocks (embedding, merging, head). Each is a pure function of
its parameters and of what the segment before gave, so that no pass runs the whole model and equal blocks compile once.
"""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

from psaq_jax.models.model import exact_products
from psaq_jax.quantization import folding
from psaq_jax.quantization.recipes import site_filter
from psaq_jax.sites import See, Site, Tap, intercepted

Watch = Callable[[str, jax.Array], None]


@dataclasses.dataclass(frozen=True)
class Segment:
    """Hashable: two blocks of the same shape are equal, so that a function jitted for one serves the other.

    Attributes:
      module: a block on its own, or the whole model where `blocks` is given.
      blocks: paths of all blocks of the model.
      index: this segment follows that many blocks.
    """

    module: nn.Module
    blocks: tuple[str, ...] = ()
    index: int = 0

    @property
    def is_block(self) -> bool:
        return not self.blocks

    def __call__(
        self, params, x, tap: Tap = lambda name, x: x, watch: Watch = lambda name, x: None,
        replace: Tap = lambda name, x: x,
    ):  # fmt: skip
        """Runs the segment. Traceable; names are relative to the block's path.

        Args:
          params: of the block, or of the whole model.
          x: the output of the segment before; pixels for the first.
          tap: as of `apply_with_tap`.
          watch: called with the name and the input of every Dense layer.
          replace: the same with its output, which it may replace.
        """

        def see(name, module, args, run):
            if isinstance(module, nn.Dense):
                watch(name, args[0])
                return replace(name, run())
            return tap(name, run()) if isinstance(module, Site) else run()

        see, inputs = self._between(x, see)
        x = jnp.zeros((x.shape[0], *self.module.image_size, 3)) if self.index else x
        with exact_products(self.module.dtype), intercepted(see):
            y = self.module.apply({"params": params}, x)
        return y if self.index == len(self.blocks) else inputs[self.index]

    def _between(self, given, inner: See):
        """The model's blocks don't run, and a block has none: the one before this segment gives `given`, the one after
        it notes what it was called with.

        What the other parts of the model compute meanwhile, on dummies, is dead code that jit drops.
        """
        inputs = []  # of the blocks so far

        def see(name, module, args, run):
            if name in self.blocks:
                inputs.append(args[0])
                return given if len(inputs) == self.index else args[0]
            return inner(name, module, args, run) if len(inputs) == self.index else run()

        return see, inputs


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a segment consists of; names relative to it."""

    sites: dict[str, tuple[int, ...]]  # those to quantize: shape for one image
    layers: dict[str, tuple[int, ...]]  # Dense layers: shape of their input for one image


def parts_of(segment: Segment, params, x) -> Parts:
    """The sites that recipe "default" quantizes, and the Dense layers, for inputs x; nothing is computed."""
    wanted, sites, layers = site_filter("default"), {}, {}

    def tap(name, y):
        if wanted(name):
            sites[name] = y.shape
        return y

    def run(params, x):
        return segment(params, x, tap=tap, watch=lambda name, y: layers.__setitem__(name, y.shape))

    jax.eval_shape(run, params, jax.ShapeDtypeStruct((1, *x.shape[1:]), jnp.float32))
    return Parts(sites, layers)


@dataclasses.dataclass(frozen=True)
class Link:
    """A segment at its place in a model: `path` is "" (between blocks) or the block's."""

    path: str
    segment: Segment

    def parameters(self, params: dict) -> dict:
        """The part of the model's tree that the segment takes."""
        return functools.reduce(lambda tree, key: tree[key], filter(None, self.path.split("/")), params)

    def replaced(self, params: dict, part: dict) -> dict:
        """The model's tree with other parameters of the segment."""
        changes = traverse_util.flatten_dict(part, sep="/")
        return folding.changed(params, {self.full_name(name): value for name, value in changes.items()})

    def full_name(self, name: str) -> str:
        return f"{self.path}/{name}" if self.path else name


def chain(module: nn.Module, params, image_shape: tuple[int, int, int]) -> tuple[Link, ...]:
    """The segments of a model in running order. A block is whatever has a site named residual2.

    Nothing is computed (abstract evaluation). What lies between two blocks and has no site is left out: it is nothing.
    """
    calls = []  # (path, module) in the order of their ends

    def see(name, called, args, run):
        y = run()
        calls.append((name, called))
        return y

    with intercepted(see):
        pixels = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
        jax.eval_shape(lambda p, x: module.apply({"params": p}, x), params, pixels)
    paths = tuple(p.rpartition("/")[0] for p, m in calls if isinstance(m, Site) and p.endswith("/residual2"))
    links, between = [], []
    for path, called in calls:
        if path in paths:
            if between:
                links.append(Link("", Segment(module, paths, len([k for k in links if k.path]))))
            links.append(Link(path, Segment(called.clone(parent=None, name=None))))
            between = []
        elif isinstance(called, Site) and not path.startswith(tuple(p + "/" for p in paths)):
            between.append(path)
    return (*links, Link("", Segment(module, paths, len(paths))))
