"""Block reconstruction: a quantized block learns to give what the float block gives, on calibration images alone.

Learned are the block's biases and LayerNorm parameters, which stay float anyway; with enough bits, the activations'
scales (LSQ, Esser et al., ICLR 2020); and by a switch, whether each weight is rounded up or down (AdaRound, Nagel et
al., ICML 2020). Against the float block's output (BRECQ, Li et al., ICLR 2021), while random elements stay unquantized
(QDrop, Wei et al., ICLR 2022). The images of a step are shared out over the devices of this process.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from psaq_jax import meshes
from psaq_jax.quantization import qdrop, quantizers
from psaq_jax.quantization.recipes import DefaultRecipe
from psaq_jax.quantization.representation import QuantizedKernel, SiteQuantizer, UniformQuantizer
from psaq_jax.quantization.segments import Segment
from psaq_jax.resumption import finished

STRETCH = 0.1  # of AdaRound's sigmoid beyond 0 and 1
TIE = 1e-6  # of its argument: enough to be below 0
ROUNDING_WEIGHT = 0.1  # of the pull towards whole numbers, relative to the initial error
WARM_UP = 0.2  # part of the steps without that pull
RATES = {"rounding": 3e-2, "scales": 3e-3, "floats": 1e-3}  # of Adam; scales are logarithms, floats go by `units`


class Rounded(NamedTuple):
    """A layer's weights as GPTQ leaves them: the kernel, and what it rounded, [i, o] float32."""

    kernel: QuantizedKernel
    target: jax.Array


class Problem(NamedTuple):
    """What stays fixed while a block is reconstructed."""

    floors: dict[str, jax.Array]  # {layer: [i, o]}, the lower of both codes; the code where no rounding is learned
    kernel_scales: dict[str, jax.Array]
    bounds: dict[str, jax.Array]  # {layer: 2^(bits − 1)}
    sites: dict[str, SiteQuantizer]


def reconstruct(
    segment: Segment, params: dict, layers: dict[str, Rounded], layer_bits: dict[str, int],
    sites: dict[str, SiteQuantizer], x: np.ndarray, x_float: np.ndarray, target: np.ndarray, options: DefaultRecipe,
    folder: pathlib.Path | None = None,
) -> tuple[dict, dict[str, Rounded], dict[str, SiteQuantizer]]:  # fmt: skip
    """Reconstructs one block.

    Args:
      params: of the block, kernels rounded; layers: what they were rounded from.
      x, x_float: the block's inputs [n, ...] after quantized and after float blocks; target: the float block's outputs.
      folder: keeps what was learned; a later call with the same bits of everything takes it from there.
    Returns:
      (params with the new kernels and floats, {layer: its rounding}, {site: quantizer}).
    """
    problem, learned = start(params, layers, layer_bits, sites, options)
    images = Images(x, x_float, target)
    settings, inputs = f"{segment} {options}", (problem, learned, images)
    found = finished(folder, settings, inputs, learned, lambda: learn(segment, problem, learned, images, options))
    return finish(problem, found)


class Images(NamedTuple):
    """A block's inputs and the float block's outputs, [n, ...] each."""

    x: np.ndarray
    x_float: np.ndarray
    target: np.ndarray

    def rows(self, rows) -> "Images":
        return Images(*(array[rows] for array in self))


def learn(segment: Segment, problem: Problem, learned: dict, images: Images, options: DefaultRecipe) -> dict:
    """What the steps make of `learned`, on the host."""
    steps, size = options.reconstruction_steps, min(options.reconstruction_batch, len(images.x))
    shares, everywhere = meshes.over_divisors(jax.local_devices(), size)
    some = jax.device_put(images.rows(slice(size)), shares)
    problem, learned, state = jax.device_put((problem, learned, make_optimizer(steps).init(learned)), everywhere)
    power = jnp.maximum(mean_error(segment, problem, learned, some.x, some.target), 1e-20)
    sizes = units(segment, problem, learned, some.x)
    params = traverse_util.unflatten_dict(soft_params(problem, learned), sep="/")
    shapes = qdrop.shapes(segment, params, problem.sites, some.x)
    generator = np.random.default_rng(options.seed)
    for i in range(steps):
        rows = np.sort(generator.choice(len(images.x), size, replace=False))
        some, progress = jax.device_put(images.rows(rows), shares), np.float32(i / steps)
        drawn = jax.device_put(qdrop.draw(jax.random.fold_in(jax.random.key(options.seed), i), shapes), shares)
        learned, state = step(segment, problem, learned, state, sizes, some, power, drawn, progress, steps)
    return jax.device_get(learned)


def start(
    params, layers: dict[str, Rounded], layer_bits, sites: dict[str, SiteQuantizer], options: DefaultRecipe
) -> tuple[Problem, dict]:
    """(the fixed part, the learned tree) whose hard rounding is the kernels as they are."""
    flat = traverse_util.flatten_dict(params, sep="/")
    floors, rounding, bounds = {}, {}, {}
    for layer, (kernel, target) in layers.items():
        bounds[layer] = jnp.float32(2.0 ** (layer_bits[layer] - 1))
        floors[layer] = kernel.codes.astype(jnp.float32)
        if options.learn_rounding:
            position = jnp.clip(target / kernel.scale, -bounds[layer], bounds[layer] - 1)
            floors[layer] = jnp.floor(position)
            nearest = jax.scipy.special.logit((position - floors[layer] + STRETCH) / (1 + 2 * STRETCH))
            # On the side of the codes: ties, rounded half to even, lie on either.
            above = kernel.codes > floors[layer]
            rounding[layer] = jnp.where(above, jnp.maximum(nearest, 0), jnp.minimum(nearest, -TIE))
    problem = Problem(floors, {layer: kernel.scale for layer, (kernel, _) in layers.items()}, bounds, sites)
    return problem, {
        "rounding": rounding,
        "scales": {name: jnp.zeros(()) for name, q in sites.items() if learns_scale(q, options)},
        # Copies: what is learned is donated from step to step, and the model keeps its own.
        "floats": {path: jnp.array(value) for path, value in flat.items() if not path.endswith("/kernel")},
    }


def learns_scale(quantizer: SiteQuantizer, options: DefaultRecipe) -> bool:
    """Of uniform grids; where the options leave it open, of those with more than 4 bits."""
    if not isinstance(quantizer, UniformQuantizer):
        return False
    return bool(quantizer.bits > 4) if options.learn_scales is None else options.learn_scales


def make_optimizer(steps: int) -> optax.GradientTransformation:
    """Adam with a cosine to zero, one rate for each kind of parameter."""
    adams = {kind: optax.adam(optax.cosine_decay_schedule(rate, steps)) for kind, rate in RATES.items()}
    return optax.multi_transform(adams, {kind: kind for kind in RATES})


def up(rounding: jax.Array) -> jax.Array:
    """AdaRound's rectified sigmoid: how far a weight is rounded up, 0..1."""
    return jnp.clip(jax.nn.sigmoid(rounding) * (1 + 2 * STRETCH) - STRETCH, 0, 1)


def straight_through(quantizer: SiteQuantizer, x: jax.Array) -> jax.Array:
    """The quantizer with gradients: rounding passes them on; uniform grids' clipping stops them, scales get LSQ's."""
    if not isinstance(quantizer, UniformQuantizer):
        return x + jax.lax.stop_gradient(quantizer(x) - x)
    levels, dtype, x = 2.0**quantizer.bits - 1, x.dtype, x.astype(jnp.float32)
    inside = jnp.clip(x / quantizer.scale + quantizer.zero_point, 0, levels)
    exact = quantizers.quantize_activations(x, quantizer.scale, quantizer.zero_point, quantizer.bits)
    codes = inside + jax.lax.stop_gradient(exact - inside)
    return ((codes - quantizer.zero_point) * quantizer.scale).astype(dtype)


def scaled(quantizer: SiteQuantizer, logarithm) -> SiteQuantizer:
    return dataclasses.replace(quantizer, scale=quantizer.scale * jnp.exp(logarithm))


def kernel_codes(problem: Problem, learned: dict, layer: str, rounded_up: Callable[[jax.Array], jax.Array]):
    """[i, o] float32, where `rounded_up` says how far a weight is."""
    floor, bound = problem.floors[layer], problem.bounds[layer]
    if layer not in learned["rounding"]:
        return floor
    return jnp.clip(floor + rounded_up(learned["rounding"][layer]), -bound, bound - 1)


def soft_params(problem: Problem, learned: dict) -> dict[str, jax.Array]:
    """{path: value} of the block with soft rounding."""
    kernels = {
        f"{layer}/kernel": kernel_codes(problem, learned, layer, up) * problem.kernel_scales[layer]
        for layer in problem.floors
    }
    return learned["floats"] | kernels


@functools.partial(jax.jit, static_argnames="segment")
def units(segment: Segment, problem: Problem, learned: dict, x) -> dict[str, jax.Array]:
    """{path of a float: how far Adam's step of one moves it}: models that are the same function learn alike, however
    small their LayerScales or their residual stream.

    A bias goes by the root mean square of what it is added to, all else by its own; where that is zero, by one.
    """
    flat, inputs, sizes = soft_params(problem, learned), {}, {}
    segment(traverse_util.unflatten_dict(flat, sep="/"), x, watch=inputs.__setitem__)
    for path, value in learned["floats"].items():
        module, _, name = path.rpartition("/")
        if name == "bias" and module in inputs:
            value = jnp.matmul(inputs[module], flat[f"{module}/kernel"], precision="highest")
        elif name == "bias":
            value = flat.get(f"{module}/scale", value)  # of a LayerNorm, whose other factor has the size of one
        sizes[path] = size(value)
    return sizes


def size(x) -> jax.Array:
    """The root mean square; one where that is zero."""
    square = jnp.mean(jnp.square(x))
    return jnp.where(square > 0, jnp.sqrt(square), 1.0)


def run(segment: Segment, problem: Problem, learned: dict, x, drawn: dict | None = None):
    """The block with soft rounding; with `qdrop.draw`'s, elements that are not drawn stay unquantized."""

    def tap(name, y):
        if name not in problem.sites:
            return y
        quantized = straight_through(scaled(problem.sites[name], learned["scales"].get(name, 0.0)), y)
        return quantized if drawn is None else jnp.where(drawn[name], quantized, y)

    return segment(traverse_util.unflatten_dict(soft_params(problem, learned), sep="/"), x, tap=tap)


@functools.partial(jax.jit, static_argnames="segment")
def mean_error(segment, problem, learned, x, target):
    return jnp.mean(jnp.square(run(segment, problem, learned, x) - target))


@functools.partial(jax.jit, static_argnames=("segment", "steps"), donate_argnames=("learned", "state"))
def step(segment, problem, learned, state, sizes, images: Images, power, drawn: dict, progress, steps: int):
    """One step of Adam: (learned, state).

    `sizes`: of `units`; `power`: what the error starts from; `drawn`: of `qdrop`; `progress`: 0 to 1.
    """
    mixed = jnp.where(drawn[qdrop.INPUTS], images.x, images.x_float)
    weights = sum(floor.size for floor in problem.floors.values())
    exponent = 20.0 + (2.0 - 20.0) * jnp.clip((progress - WARM_UP) / (1 - WARM_UP), 0, 1)

    def loss(learned):
        error = jnp.mean(jnp.square(run(segment, problem, learned, mixed, drawn) - images.target)) / power
        softness = sum(jnp.sum(1 - jnp.abs(2 * up(v) - 1) ** exponent) for v in learned["rounding"].values())
        return error + (progress > WARM_UP) * ROUNDING_WEIGHT * softness / weights

    updates, state = make_optimizer(steps).update(jax.grad(loss)(learned), state, learned)
    updates["floats"] = {path: sizes[path] * update for path, update in updates["floats"].items()}
    return optax.apply_updates(learned, updates), state


def finish(problem: Problem, learned: dict):
    """(params, {layer: its rounding}, {site: quantizer}) with every weight rounded for good."""
    learned = jax.tree.map(jnp.asarray, learned)
    layers, flat = {}, dict(learned["floats"])
    for layer in problem.floors:
        codes = kernel_codes(problem, learned, layer, lambda rounding: rounding >= 0)
        kernel = QuantizedKernel(codes.astype(jnp.int8), problem.kernel_scales[layer])
        layers[layer] = Rounded(kernel, kernel.dequantize())
        flat[f"{layer}/kernel"] = kernel.dequantize()
    sites = {name: scaled(q, learned["scales"].get(name, 0.0)) for name, q in problem.sites.items()}
    return traverse_util.unflatten_dict(flat, sep="/"), layers, sites
