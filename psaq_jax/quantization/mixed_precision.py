"""Mixed precision: every kernel gets its own bits, so that their average meets a budget and the output loses least.

What a kernel costs at 2 to 8 bits is measured by rounding it alone, as the recipe does, all else in floating point, on
calibration images: no label and no real image is needed. The cost is the divergence of the probabilities, not the
logits' squared error: it counts what moves the decision, and for small errors is their square, weighted by the Fisher
information. Errors of single kernels are small and nearly independent, so costs add up (the assumption of HAWQ-V2, Dong
et al., NeurIPS 2020, whose second-order estimate is measured here instead), and the best bits are a multiple-choice
knapsack, solved exactly but for sizes that are rounded up where the layers' have no large common divisor.
"""

import math
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from psaq_jax.checks import fits
from psaq_jax.errors import InputError
from psaq_jax.evaluation import predict_logits
from psaq_jax.models.model import Model, check_float_model, in_float32
from psaq_jax.progress import Progress
from psaq_jax.quantization import default, streaming
from psaq_jax.quantization.calibration import check_pixels
from psaq_jax.quantization.preparation import Preparation
from psaq_jax.quantization.quantizers import fake_quantize_weights
from psaq_jax.quantization.recipes import DefaultRecipe
from psaq_jax.quantization.segments import chain, parts_of
from psaq_jax.quantization.transform import kernel_sizes

BITS = tuple(range(2, 9))
IMAGES = 128  # on which costs are measured, at most
BATCH = 32
STATES = 2**18  # of the knapsack: where layers' sizes have no common divisor that is large enough, they are rounded up


def choose_bits(
    model: Model, costs: Mapping[str, np.ndarray], budget: float, options: DefaultRecipe | None = None
) -> dict[str, int]:
    """{layer: bits of its kernel} for `quantize`, the average over all weights at most `budget`.

    Args:
      costs: of `kernel_costs`, of the layers that are `free_layers` with these options; they serve every budget.
      budget: 2 to 8 bits a weight on average.
      options: of recipe "default". First and last layers that it keeps at 8 bits don't count, as they don't in "w4", so
        that equal budgets are equal sizes.
    Raises:
      InputError: a budget outside 2 to 8, or costs of other layers.
    """
    if not fits(budget, float) or not 2 <= budget <= 8:
        raise InputError(f"the budget of mixed precision is {budget!r}, expected an average of 2 to 8 bits a weight")
    if other := sorted(set(free_layers(model, options)) ^ costs.keys(), key=str):
        raise InputError(f"costs: layer {other[0]!r} is missing or unknown, expected those of free_layers")
    sizes = kernel_sizes(model.params)
    found = allocate(costs, sizes, budget)
    return {layer: found.get(layer) or options.bits(layer, BITS[0]) for layer in sizes}


def free_layers(model: Model, options: DefaultRecipe | None = None) -> list[str]:
    """The layers whose bits are to be chosen; options: as `choose_bits`."""
    layers = kernel_sizes(model.params)
    return [layer for layer in layers if options is None or options.bits(layer, BITS[0]) == BITS[0]]


@in_float32
def kernel_costs(
    model: Model, pixels, layers, prepared: Preparation | None = None, progress: Progress | None = None
) -> dict[str, np.ndarray]:
    """{layer: [7] float64}: Σ p·log(p/q) of the float model's probabilities p and those, q, of the model whose kernel
    alone has 2, 3, ... 8 bits, on average over images.

    Args:
      pixels: calibration images [n, height, width, 3] normalised; at most the first 128.
      prepared: None for recipe "paper", or of recipe "default": kernels are rotated, folded and rounded as there, but
        not in `bases`, so that every function-preserving copy has these costs.
      progress: called with (layers done, in all).
    Raises:
      InputError: no float model, one class, images of another shape, an unknown layer.
    """
    check_float_model(model, "kernel_costs")
    if model.classes == 1:
        raise InputError(
            f"{model.source}: has one class, whose probability is always 1, and mixed precision goes by probabilities; "
            "give whole bits, such as w4a8"
        )
    if other := sorted(set(layers) - (known := kernel_sizes(model.params)).keys(), key=str):
        raise InputError(f"kernel_costs: found layer {other[0]!r}, expected some of {', '.join(known)}")
    pixels = check_pixels(model, pixels)[:IMAGES]
    base, rounded = (prepared.folded, _rounded(prepared, layers)) if prepared else (model, _nearest(model, layers))
    flat, reference = traverse_util.flatten_dict(base.params, sep="/"), _log_probabilities(base, pixels)
    costs = {}
    for layer, candidates in rounded:
        divergences = []
        for changes in candidates:
            params = traverse_util.unflatten_dict(flat | changes, sep="/")
            found = _log_probabilities(model.replace(params=params, source=model.source), pixels)
            divergences.append(np.mean(np.sum(np.exp(reference) * (reference - found), axis=1)))
        costs[layer] = np.array(divergences)
        if progress:
            progress(len(costs), len(layers))
    return costs


Candidates = Iterator[tuple[str, Iterator[dict[str, jax.Array]]]]  # a layer, its parameters {full path: value} by bits


def _nearest(model: Model, layers) -> Candidates:
    flat = traverse_util.flatten_dict(model.params, sep="/")
    for layer in layers:
        path = f"{layer}/kernel"
        yield layer, ({path: fake_quantize_weights(flat[path], jnp.float32(bits))} for bits in BITS)


def _rounded(prepared: Preparation, layers) -> Candidates:
    """As recipe "default" rounds each layer of `prepared.folded` while all others stay in floating point."""
    model, options, x, near = prepared.folded, prepared.options, prepared.views, prepared.close_ups
    for link in chain(model.module, model.params, model.image_shape):
        segment, params = link.segment, link.parameters(model.params)
        outputs = default.output_costs(prepared, link, params, x)
        for layer, shape in parts_of(segment, params, x).layers.items():
            if link.full_name(layer) not in layers:
                continue
            moments = default.input_moments(segment, layer, shape[-1], params, {}, x, near)
            rest = moments, moments.mean, outputs.get(layer)
            found = (default.round_layer(params, layer, *rest, bits, options)[1] for bits in BITS)
            yield link.full_name(layer), ({link.full_name(k): v for k, v in changes.items()} for changes in found)
        x = streaming.propagate(segment, params, {}, x)
        near = None if near is None else streaming.propagate(segment, params, {}, near)


def allocate(costs: Mapping[str, np.ndarray], sizes: Mapping[str, int], budget: float) -> dict[str, int]:
    """{layer: bits} of the least total cost whose average, weighted by size, is at most `budget`; of equal costs the
    same bits for all. Sizes count in units of at least their sum's 43,691st part, rounded up.

    Args:
      costs: {layer: [7], at 2 to 8 bits}; sizes: {layer: weights}; budget: at least 2.
    """
    total = sum(sizes[layer] for layer in costs)
    unit = max(math.gcd(*(sizes[layer] for layer in costs)), -(-total * (BITS[-1] - BITS[0]) // STATES))
    capacity = math.floor((budget - BITS[0]) * total / unit + 1e-9)  # in units of bits beyond 2 for each weight
    best, choices = np.zeros(capacity + 1), []
    for layer, cost in costs.items():
        options = np.full((len(BITS), capacity + 1), np.inf)
        for k, bits in enumerate(BITS):
            used = -(-sizes[layer] * (bits - BITS[0]) // unit)
            if used <= capacity:
                options[k, used:] = cost[k] + best[: capacity + 1 - used]
        choices.append(options.argmin(axis=0))
        best = options.min(axis=0)
    found, left = {}, capacity
    for layer, choice in zip(reversed(costs), reversed(choices), strict=True):
        found[layer] = BITS[choice[left]]
        left -= -(-sizes[layer] * (found[layer] - BITS[0]) // unit)
    uniform = dict.fromkeys(costs, min(int(budget), BITS[-1]))  # rounding up sizes may leave it out
    both = uniform, dict(reversed(found.items()))
    return min(both, key=lambda bits: sum(costs[layer][b - BITS[0]] for layer, b in bits.items()))


def _log_probabilities(model: Model, pixels) -> np.ndarray:
    logits = predict_logits(model, pixels, BATCH).astype(np.float64)
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
