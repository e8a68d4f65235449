"""Recipe "default": rotate, fold, choose ranges, round weights, reconstruct; one segment of the model at a time.

Nothing here needs labels or real images. Ingredients are functions of their own in the modules named after them
(channel_folding, clipping, gptq, output_moments, two_sided, reconstruction; `preparation` has rotation, views and
importance); this one says in which order they meet a segment, and corrects biases.
"""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from psaq_jax.progress import Progress
from psaq_jax.quantization import clipping, folding, quantizers, statistics, streaming
from psaq_jax.quantization.channel_folding import HIDDEN, Bits, fold
from psaq_jax.quantization.gptq import codes_of, coordinate_descent, gptq, searched_scale
from psaq_jax.quantization.grids import factor_sites
from psaq_jax.quantization.output_moments import output_moments
from psaq_jax.quantization.preparation import Preparation
from psaq_jax.quantization.recipes import DefaultRecipe
from psaq_jax.quantization.reconstruction import Rounded, reconstruct
from psaq_jax.quantization.representation import QuantizedKernel, SiteQuantizer
from psaq_jax.quantization.segments import Link, Parts, chain, parts_of
from psaq_jax.quantization.two_sided import two_sided


def default_params_and_sites(
    prepared: Preparation,
    weight_bits: dict[str, int],
    activation_bits: int | None,
    progress: Progress | None = None,
    folder: pathlib.Path | None = None,
) -> tuple[dict, dict[str, SiteQuantizer]]:
    """The quantized tree (kernels as `QuantizedKernel`) and {site: quantizer} in running order.

    Args:
      weight_bits: {full name of a Dense layer: bits}; activation_bits: None leaves activations as they are.
      progress: called as progress(segments done, all); folder: of the reconstruction.
    """
    prepared = prepared.at(min(weight_bits.values()), activation_bits)
    model, options, near = prepared.rotated, prepared.options, prepared.close_ups
    params, sites, kernels, pixels = model.params, {}, {}, model.preprocessing.pixel_range
    weighs = options.token_importance and options.search_ranges and activation_bits is not None
    importance = prepared.importance if weighs else {}
    x_float = x = prepared.views
    links = chain(model.module, model.params, model.image_shape)
    for done, link in enumerate(links, 1):
        segment = link.segment
        parts = parts_of(segment, link.parameters(params), x)
        bits = Bits({layer: weight_bits[link.full_name(layer)] for layer in parts.layers}, activation_bits)
        folded = fold(segment, parts, link.parameters(params), x_float, bits, options)
        weights = {name: rows for name in parts.sites if (rows := importance.get(link.full_name(name))) is not None}
        found = choose_quantizers(segment, parts, folded, x, bits, options, pixels, weights)
        target, means = streaming.propagate_float(segment, folded, x_float)
        costs = output_costs(prepared, link, folded, x_float) if min(bits.weights.values(), default=8) < 8 else {}
        rounded, layers = round_weights(segment, parts, folded, found, x, near, means, costs, bits, options)
        if segment.is_block and wants_reconstruction(bits, options):
            rounded, layers, found = reconstruct(
                segment, rounded, layers, bits.weights, found, x, x_float, target, options, folder
            )
        if link is not links[-1]:
            x_float, x = target, streaming.propagate(segment, rounded, found, x)
            near = None if near is None else streaming.propagate(segment, rounded, found, near)
        params = link.replaced(params, rounded)
        kernels |= {link.full_name(f"{layer}/kernel"): kernel for layer, (kernel, _) in layers.items()}
        sites |= {link.full_name(name): quantizer for name, quantizer in found.items()}
        if progress:
            progress(done, len(links))
    return folding.changed(params, kernels), sites


def output_costs(prepared: Preparation, link: Link, params, x_float) -> dict[str, jax.Array]:
    """{layer: `output_moments` at its outputs} of the segment with these parameters; of blocks alone, and of none where
    the options go without.

    Args:
      x_float: the segment's inputs in floating point, of all views.
    """
    given = prepared.gradients.get(link.full_name("residual2")) if prepared.options.two_sided else None
    return {} if given is None else output_moments(link.segment, params, x_float[prepared.some], given)


def wants_reconstruction(bits: Bits, options: DefaultRecipe) -> bool:
    """Where the options leave it open: at most 3 bits of weights or 4 of activations (docs/experiments.md), or more for
    it to learn.
    """
    few = min(bits.weights.values()) <= 3 or (bits.activations or 32) <= 4
    learns = options.learn_rounding or options.learn_scales
    return bool(few or learns) if options.reconstruct is None else options.reconstruct


def choose_quantizers(
    segment, parts: Parts, params, x, bits: Bits, options, pixels, importance: dict[str, np.ndarray]
) -> dict[str, SiteQuantizer]:
    """A quantizer for every site of the segment, {relative name: quantizer} in running order."""
    if bits.activations is None:
        return {}
    heads = [name for name in parts.sites if name.endswith(streaming.PROBABILITIES)]
    widths = {name: statistics.width(name, shape) for name, shape in parts.sites.items() if name not in heads}
    if not widths:
        return {}
    moments = streaming.channel_moments(segment, params, x, widths)
    grounds = tensor_grounds(moments, kernels_of(params, parts), pixels)
    counts = streaming.tensor_histograms(segment, params, x, grounds | dict.fromkeys(heads), importance)
    found = {}
    for name in parts.sites:
        site_bits = np.float32(options.bits(name, bits.activations))
        if name in heads:
            tokens = parts.sites[name][-1]
            grids = clipping.probability_quantizer(counts[name], site_bits, tokens, options.softmax, options.coverage)
            found[name] = clipping.choose(*grids)
            continue
        low, high, _ = grounds[name]
        centers = statistics.bin_centers(low[None], high[None], streaming.TENSOR_BINS)[0]
        histogram, error = (counts[name], centers, low, high, site_bits, options.coverage), None
        if options.search_ranges and name != "input":
            low, high, error = clipping.tensor_range(*histogram)
        found[name] = clipping.uniform(low, high, site_bits)
        if name == HIDDEN and options.gelu == "searched" and site_bits < 8 and error is not None:
            log, log_error = clipping.shifted_log(*histogram)
            found[name] = clipping.choose(log_error < error, log, found[name])
    return found


def kernels_of(params, parts: Parts) -> dict[str, jax.Array]:
    flat = traverse_util.flatten_dict(params, sep="/")
    return {layer: flat[f"{layer}/kernel"] for layer in parts.layers}


@jax.jit
def tensor_grounds(moments: dict, kernels: dict, pixels) -> dict[str, tuple[jax.Array, jax.Array, jax.Array]]:
    """{site: (low, high, what an error costs in each channel [c])}; zero is inside, and for "input" all `pixels`.

    The input's range is `pixels` and what the calibration images hold: the paper's synthesis clips to ImageNet's range,
    whatever the model's own, and what the quantizer cuts off would shift every mean that bias correction sees.
    """
    grounds = {}
    for name, m in moments.items():
        low, high = jnp.minimum(m.low.min(), 0.0), jnp.maximum(m.high.max(), 0.0)
        if name == "input":
            low, high = jnp.minimum(low, pixels[0]), jnp.maximum(high, pixels[1])
        grounds[name] = low, high, channel_costs(name, kernels, moments)
    return grounds


def channel_costs(name: str, kernels: dict, moments: dict) -> jax.Array:
    """What a squared error in a channel costs in the product that takes it, [c]; errors of channels add up.

    Kernels: the squared norm of the channel's row; values go through the attention to the projection. Queries: the
    keys' mean square, and the other way round. Pixels: one, because a kernel's rows are of patches.
    """
    other = {"attention/query": "attention/key", "attention/key": "attention/query"}.get(name)
    if other:
        return moments[other].square
    taken = {site: layer for layer in kernels for site in factor_sites(layer, moments, moments)}
    layer = taken.get("attention/attention_output" if name == "attention/value" else name)
    if layer is None or name == "input":
        return jnp.ones_like(moments[name].low)
    return jnp.sum(jnp.square(kernels[layer]), 1)


def round_weights(
    segment, parts: Parts, params, sites, x, near, means, costs, bits: Bits, options
) -> tuple[dict, dict]:
    """Every Dense layer of the segment in running order: (parameters with rounded kernels, {layer: `Rounded`}).

    Args:
      near: as `input_moments`; means: {layer: mean of its inputs in the float segment [i]}; costs: {layer: moments at
        its outputs [o, o]}.
    """
    rounded, layers = params, {}
    for layer, shape in parts.layers.items():
        moments = input_moments(segment, layer, shape[-1], rounded, sites, x, near)
        layers[layer], changes = round_layer(
            params, layer, moments, means[layer], costs.get(layer), bits.weights[layer], options
        )
        rounded = folding.changed(rounded, changes)
    return rounded, layers


def input_moments(segment, layer: str, width: int, params, sites, x, near) -> streaming.LayerMoments:
    """Of a layer's inputs, `width` wide. near: None, or the close-ups: second moments are of them too, so that rounding
    makes the error small there as well; the mean is for biases, of x alone.
    """
    moments = streaming.layer_moments(segment, layer, width, params, sites, x)
    if near is None:
        return moments
    others = streaming.layer_moments(segment, layer, width, params, sites, near).hessian
    hessian = (len(x) * moments.hessian + len(near) * others) / (len(x) + len(near))
    return moments._replace(hessian=hessian)


def round_layer(params, layer: str, moments, mean, outputs, bits: int, options) -> tuple[Rounded, dict]:
    """One layer of a segment: (`Rounded`, its new parameters {path: values}).

    Args:
      moments: `input_moments`; mean: of its inputs in the float segment [i]; outputs: None, or moments there [o, o].
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    kernel, bias = flat[f"{layer}/kernel"], flat.get(f"{layer}/bias")
    found = round_kernel(kernel, moments.hessian, outputs if bits < 8 else None, np.float32(bits), options)
    changes = {f"{layer}/kernel": found.kernel.dequantize()}
    if options.bias_correction and bias is not None:
        changes[f"{layer}/bias"] = corrected(bias, kernel, mean, changes[f"{layer}/kernel"], moments.mean)
    return found, changes


def round_kernel(kernel, inputs, outputs, bits, options: DefaultRecipe) -> Rounded:
    """One kernel [i, o], with the second moments of its inputs [i, i] and, or None, of the gradients behind [o, o]."""
    damping = np.float32(options.damping)
    switches = options.search_weight_scales, options.gptq, options.coordinate_descent
    rounded = _round(kernel, inputs, bits, damping, *switches)
    if outputs is None:
        return rounded
    codes, target = two_sided(kernel, inputs, outputs, rounded.kernel.scale, bits, damping)
    return Rounded(dataclasses.replace(rounded.kernel, codes=codes.astype(jnp.int8)), target)


@functools.partial(jax.jit, static_argnames=("search", "second_order", "descend"))
def _round(kernel, hessian, bits, damping, search: bool, second_order: bool, descend: bool) -> Rounded:
    if search:
        scale = searched_scale(kernel, jnp.diagonal(hessian), bits)
    else:
        scale = quantizers.weight_scale(kernel, bits)
    if second_order:
        codes, target = gptq(kernel, hessian, scale, bits, damping)
    else:
        codes, target = codes_of(kernel, scale, bits), kernel
    if descend:
        codes, target, scale = coordinate_descent(kernel, hessian, codes, scale, bits, damping)
    return Rounded(QuantizedKernel(codes.astype(jnp.int8), scale), target)


@jax.jit
def corrected(bias, kernel, mean, rounded, rounded_mean) -> jax.Array:
    """The bias [o] that gives a layer's output, on average over the images, what rounding its kernel took away."""
    product = functools.partial(jnp.matmul, precision="highest")
    return bias + product(mean, kernel) - product(rounded_mean, rounded)
