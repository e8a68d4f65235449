"""Block reconstruction: a quantized block learns to give what the float block gives, on calibration images alone.

Learned are whether each weight is rounded up or down (AdaRound, Nagel et al., ICML 2020), the activations' scales (LSQ,
Esser et al., ICLR 2020) and the block's biases and LayerNorm parameters, which stay float anyway; against the float
block's output (BRECQ, Li et al., ICLR 2021), while random elements stay unquantized (QDrop, Wei et al., ICLR 2022).
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from psaq_jax.quantization import folding, quantizers
from psaq_jax.quantization.recipes import DefaultRecipe
from psaq_jax.quantization.representation import QuantizedKernel, SiteQuantizer, UniformQuantizer
from psaq_jax.quantization.segments import Segment

STRETCH = 0.1  # of AdaRound's sigmoid beyond 0 and 1
ROUNDING_WEIGHT = 0.1  # of the pull towards whole numbers, relative to the initial error
WARM_UP = 0.2  # part of the steps without that pull
RATES = {"rounding": 3e-2, "scales": 3e-3, "floats": 1e-3}  # of Adam; scales are learned as logarithms


class Rounded(NamedTuple):
    """A layer's weights as GPTQ leaves them: the kernel, and what it rounded, [i, o] float32."""

    kernel: QuantizedKernel
    target: jax.Array


class Problem(NamedTuple):
    """What stays fixed while a block is reconstructed."""

    params: dict  # flat {path: array}; kernels are replaced, floats start here
    floors: dict[str, jax.Array]  # {layer: [i, o]}, the lower of both codes
    kernel_scales: dict[str, jax.Array]
    bounds: dict[str, jax.Array]  # {layer: 2^(bits − 1)}
    sites: dict[str, SiteQuantizer]


def reconstruct(
    segment: Segment, params: dict, layers: dict[str, Rounded], layer_bits: dict[str, int],
    sites: dict[str, SiteQuantizer], x: np.ndarray, x_float: np.ndarray, target: np.ndarray, options: DefaultRecipe,
) -> tuple[dict, dict[str, Rounded], dict[str, SiteQuantizer]]:  # fmt: skip
    """Reconstructs one block.

    Args:
      params: of the block, kernels rounded; layers: what they were rounded from.
      x, x_float: the block's inputs [n, ...] after quantized and after float blocks; target: the float block's outputs.
    Returns:
      (params with the new kernels and floats, {layer: its rounding}, {site: quantizer}).
    """
    problem, learned = start(params, layers, layer_bits, sites)
    optimizer = make_optimizer(options.reconstruction_steps)
    state, size = optimizer.init(learned), min(options.reconstruction_batch, len(x))
    power = jnp.maximum(mean_error(segment, problem, learned, x[:size], target[:size]), 1e-20)
    generator = np.random.default_rng(options.seed)
    for i in range(options.reconstruction_steps):
        rows = np.sort(generator.choice(len(x), size, replace=False))
        key = jax.random.fold_in(jax.random.key(options.seed), i)
        progress = np.float32(i / options.reconstruction_steps)
        learned, state = _step(
            segment, problem, learned, state, x[rows], x_float[rows], target[rows], power, key, progress,
            options.reconstruction_steps,
        )  # fmt: skip
    return finish(problem, learned)


def start(params, layers: dict[str, Rounded], layer_bits, sites) -> tuple[Problem, dict]:
    """(the fixed part, the learned tree) whose hard rounding is the kernels as they are."""
    flat = traverse_util.flatten_dict(params, sep="/")
    floors, rounding, bounds = {}, {}, {}
    for layer, (kernel, target) in layers.items():
        bound = 2.0 ** (layer_bits[layer] - 1)
        position = jnp.clip(target / kernel.scale, -bound, bound - 1)
        floors[layer], bounds[layer] = jnp.floor(position), jnp.float32(bound)
        rounding[layer] = jax.scipy.special.logit((position - floors[layer] + STRETCH) / (1 + 2 * STRETCH))
    scales = {layer: rounded.kernel.scale for layer, rounded in layers.items()}
    learned_sites = {name: jnp.zeros(()) for name, q in sites.items() if isinstance(q, UniformQuantizer)}
    floats = {path: value for path, value in flat.items() if not path.endswith("/kernel")}
    problem = Problem(flat, floors, scales, bounds, sites)
    return problem, {"rounding": rounding, "scales": learned_sites, "floats": floats}


def make_optimizer(steps: int) -> optax.GradientTransformation:
    """Adam with a cosine to zero, one rate for each kind of parameter."""
    adams = {kind: optax.adam(optax.cosine_decay_schedule(rate, steps)) for kind, rate in RATES.items()}
    return optax.multi_transform(adams, {kind: kind for kind in RATES})


def up(rounding: jax.Array) -> jax.Array:
    """AdaRound's rectified sigmoid: how far a weight is rounded up, 0..1."""
    return jnp.clip(jax.nn.sigmoid(rounding) * (1 + 2 * STRETCH) - STRETCH, 0, 1)


def straight_through(quantizer: SiteQuantizer, x: jax.Array) -> jax.Array:
    """The quantizer with gradients: rounding passes them on, clipping stops them; scales get LSQ's."""
    if not isinstance(quantizer, UniformQuantizer):
        return x + jax.lax.stop_gradient(quantizer(x) - x)
    levels = 2.0**quantizer.bits - 1
    inside = jnp.clip(x / quantizer.scale + quantizer.zero_point, 0, levels)
    exact = quantizers.quantize_activations(x, quantizer.scale, quantizer.zero_point, quantizer.bits)
    codes = inside + jax.lax.stop_gradient(exact - inside)
    return (codes - quantizer.zero_point) * quantizer.scale


def scaled(quantizer: SiteQuantizer, logarithm) -> SiteQuantizer:
    return dataclasses.replace(quantizer, scale=quantizer.scale * jnp.exp(logarithm))


def run(segment: Segment, problem: Problem, learned: dict, x, key=None):
    """The block with soft rounding; with a key, half of the activations' elements stay unquantized (QDrop)."""
    flat = {**problem.params, **learned["floats"]}
    for layer, floor in problem.floors.items():
        bound = problem.bounds[layer]
        codes = jnp.clip(floor + up(learned["rounding"][layer]), -bound, bound - 1)
        flat[f"{layer}/kernel"] = codes * problem.kernel_scales[layer]
    number = [0]

    def tap(name, y):
        if name not in problem.sites:
            return y
        quantized = straight_through(scaled(problem.sites[name], learned["scales"].get(name, 0.0)), y)
        if key is None:
            return quantized
        number[0] += 1
        return jnp.where(jax.random.bernoulli(jax.random.fold_in(key, number[0]), 0.5, y.shape), quantized, y)

    return segment(traverse_util.unflatten_dict(flat, sep="/"), x, tap=tap)


@functools.partial(jax.jit, static_argnames="segment")
def mean_error(segment, problem, learned, x, target):
    return jnp.mean(jnp.square(run(segment, problem, learned, x) - target))


@functools.partial(jax.jit, static_argnames=("segment", "steps"), donate_argnames=("learned", "state"))
def _step(segment, problem, learned, state, x, x_float, target, power, key, progress, steps):
    key_input, key_sites = jax.random.split(key)
    mixed = jnp.where(jax.random.bernoulli(key_input, 0.5, x.shape), x, x_float)
    weights = sum(floor.size for floor in problem.floors.values())
    exponent = 20.0 + (2.0 - 20.0) * jnp.clip((progress - WARM_UP) / (1 - WARM_UP), 0, 1)

    def loss(learned):
        error = jnp.mean(jnp.square(run(segment, problem, learned, mixed, key_sites) - target)) / power
        softness = sum(jnp.sum(1 - jnp.abs(2 * up(v) - 1) ** exponent) for v in learned["rounding"].values())
        return error + (progress > WARM_UP) * ROUNDING_WEIGHT * softness / weights

    updates, state = make_optimizer(steps).update(jax.grad(loss)(learned), state, learned)
    return optax.apply_updates(learned, updates), state


def finish(problem: Problem, learned: dict):
    """(params, {layer: its rounding}, {site: quantizer}) with every weight rounded for good."""
    layers, changes = {}, dict(learned["floats"])
    for layer, floor in problem.floors.items():
        bound = problem.bounds[layer]
        codes = jnp.clip(floor + (learned["rounding"][layer] >= 0), -bound, bound - 1)
        kernel = QuantizedKernel(codes.astype(jnp.int8), problem.kernel_scales[layer])
        layers[layer] = Rounded(kernel, kernel.dequantize())
        changes[f"{layer}/kernel"] = kernel.dequantize()
    sites = {name: scaled(q, learned["scales"].get(name, 0.0)) for name, q in problem.sites.items()}
    params = traverse_util.unflatten_dict(problem.params, sep="/")
    return folding.changed(params, changes), layers, sites
