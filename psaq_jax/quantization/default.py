"""Recipe "default": fold, choose ranges, round weights, reconstruct; one segment of the model at a time.

Nothing here needs labels or real images. Every ingredient is a function of its own in the modules named after it
(folding, clipping, gptq, reconstruction); this one only says in which order they meet a segment.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from psaq_jax.models.model import Model
from psaq_jax.quantization import clipping, folding, quantizers, statistics, streaming
from psaq_jax.quantization.channel_folding import HEADS, Bits, Parts, fold, inspect
from psaq_jax.quantization.gptq import codes_of, gptq, searched_scale
from psaq_jax.quantization.recipes import DefaultRecipe
from psaq_jax.quantization.reconstruction import Rounded, reconstruct
from psaq_jax.quantization.representation import QuantizedKernel, SiteQuantizer
from psaq_jax.quantization.segments import Link, chain
from psaq_jax.quantization.views import with_plain_grounds

CONSUMERS = {
    "norm1_output": "attention/qkv", "attention/value": "attention/projection", "norm2_output": "mlp/dense1",
    "attention/attention_output": "attention/projection", "mlp/activation_output": "mlp/dense2",
}  # fmt: skip


GELU_OUTPUT = "mlp/activation_output"


def default_params_and_sites(
    model: Model,
    weight_bits: dict[str, int],
    activation_bits: int | None,
    images: np.ndarray,
    options: DefaultRecipe,
) -> tuple[dict, dict[str, SiteQuantizer]]:
    """The quantized tree (kernels as `QuantizedKernel`) and {site: quantizer} in running order.

    Args:
      weight_bits: {full name of a Dense layer: bits}; activation_bits: None leaves activations as they are.
      images: [n, height, width, 3] float32 normalised.
    """
    params, sites, kernels = model.params, {}, {}
    if options.plain_grounds:
        images = with_plain_grounds(images, options.seed)
    x_float = x = images
    for link in chain(model.module, model.params, model.image_shape):
        segment = link.segment
        parts = inspect(segment, link.parameters(params), x)
        bits = Bits({layer: weight_bits[link.full_name(layer)] for layer in parts.layers}, activation_bits)
        folded = fold(segment, parts, link.parameters(params), x_float, bits, options)
        found = choose_quantizers(segment, parts, folded, x, bits, options, pixel_range(model))
        rounded, layers = round_weights(segment, parts, folded, found, x, x_float, bits, options)
        target = streaming.propagate(segment, folded, {}, x_float)
        if segment.is_block and wants_reconstruction(bits, options):
            rounded, layers, found = reconstruct(
                segment, rounded, layers, bits.weights, found, x, x_float, target, options
            )
        x_float, x = target, streaming.propagate(segment, rounded, found, x)
        params = _replaced(params, link, rounded)
        kernels |= {link.full_name(f"{layer}/kernel"): kernel for layer, (kernel, _) in layers.items()}
        sites |= {link.full_name(name): quantizer for name, quantizer in found.items()}
    return folding.changed(params, kernels), sites


def wants_reconstruction(bits: Bits, options: DefaultRecipe) -> bool:
    """Where the options leave it open: at 4 bits and below, of weights or activations."""
    activations = bits.activations or 32
    few = min(*bits.weights.values(), activations) <= 4 and activations < 8
    return few if options.reconstruct is None else options.reconstruct


def _replaced(params: dict, link: Link, part: dict) -> dict:
    flat = traverse_util.flatten_dict(part, sep="/")
    return folding.changed(params, {link.full_name(name): value for name, value in flat.items()})


def pixel_range(model: Model) -> tuple[float, float]:
    """Least and greatest normalised value of any pixel: known without data.

    The input's range is this and what the calibration images hold: the paper's synthesis clips to ImageNet's range,
    whatever the model's own, and what the quantizer cuts off would shift every mean that bias correction sees.
    """
    p = model.preprocessing
    ends = np.array([(e * 255 * p.rescale_factor - np.array(p.mean)) / np.array(p.std) for e in (0, 1)])
    return float(ends.min()), float(ends.max())


def choose_quantizers(segment, parts: Parts, params, x, bits: Bits, options, pixels) -> dict[str, SiteQuantizer]:
    """A quantizer for every site of the segment, {relative name: quantizer} in running order."""
    if bits.activations is None:
        return {}
    heads = [name for name in parts.sites if name.endswith(streaming.PROBABILITIES)]
    widths = {name: _width(name, shape) for name, shape in parts.sites.items() if name not in heads}
    if not widths:
        return {}
    moments = streaming.channel_moments(segment, params, x, tuple(widths.items()))
    ends = {n: (jnp.minimum(m.low.min(), 0.0), jnp.maximum(m.high.max(), 0.0)) for n, m in moments.items()}
    if "input" in ends:
        low, high = ends["input"]
        ends["input"] = jnp.minimum(low, pixels[0]), jnp.maximum(high, pixels[1])
    costs = {name: channel_costs(name, params, moments, parts) for name in widths}
    costs |= {name: jnp.zeros(()) for name in heads}
    counts = streaming.tensor_histograms(segment, params, x, ends, costs)
    found = {}
    for name in parts.sites:
        site_bits = options.bits(name, bits.activations)
        if name in heads:
            grids = clipping.probability_quantizer(counts[name], site_bits, options.softmax, options.coverage)
            found[name] = clipping.choose(*grids)
            continue
        low, high = ends[name]
        centers = statistics.bin_centers(low[None], high[None], streaming.TENSOR_BINS)[0]
        histogram, error = (counts[name], centers, low, high, jnp.float32(site_bits), options.coverage), None
        if options.search_ranges and name != "input":
            low, high, error = clipping.tensor_range(*histogram)
        found[name] = clipping.uniform(low, high, site_bits)
        if name == GELU_OUTPUT and options.gelu == "searched" and site_bits < 8 and error is not None:
            log, log_error = clipping.shifted_log(*histogram)
            found[name] = clipping.choose(log_error < error, log, found[name])
    return found


def _width(name: str, shape) -> int:
    by_head = name.rpartition("/")[2] in ("query", "key", "value", "attention_output")
    return shape[1] * shape[3] if by_head else shape[-1]


def channel_costs(name: str, params, moments, parts: Parts) -> jax.Array:
    """What a squared error in a channel costs in the product that takes it, [c]; errors of channels add up.

    Kernels: the squared norm of the channel's row. Queries: the keys' mean square, and the other way round.
    """
    other = {"attention/query": "attention/key", "attention/key": "attention/query"}.get(name)
    if other:
        return moments[other].square
    layer = CONSUMERS.get(name) or HEADS.get(name) or name.removesuffix("norm_output") + "reduction"
    if layer not in parts.layers:
        return jnp.ones(len(moments[name].low))
    flat = traverse_util.flatten_dict(params, sep="/")
    return jnp.sum(jnp.square(flat[f"{layer}/kernel"]), 1)


def round_weights(segment, parts: Parts, params, sites, x, x_float, bits: Bits, options) -> tuple[dict, dict]:
    """Every Dense layer of the segment in running order: (parameters with rounded kernels, {layer: `Rounded`})."""
    rounded, layers = params, {}
    for layer in parts.layers:
        kernel = traverse_util.flatten_dict(params, sep="/")[f"{layer}/kernel"]
        moments = streaming.layer_moments(segment, layer, rounded, sites, x, params, x_float)
        layers[layer] = round_kernel(kernel, moments.hessian, jnp.float32(bits.weights[layer]), options)
        changes = {f"{layer}/kernel": layers[layer].kernel.dequantize()}
        bias = traverse_util.flatten_dict(rounded, sep="/").get(f"{layer}/bias")
        if options.bias_correction and bias is not None:
            missing = moments.float_mean @ kernel - moments.mean @ changes[f"{layer}/kernel"]
            changes[f"{layer}/bias"] = bias + missing
        rounded = folding.changed(rounded, changes)
    return rounded, layers


def round_kernel(kernel, hessian, bits, options: DefaultRecipe) -> Rounded:
    """One kernel [i, o] with the input's second moments [i, i]."""
    if options.search_weight_scales:
        scale = searched_scale(kernel, jnp.diagonal(hessian), bits)
    else:
        scale = quantizers.weight_scale(kernel, bits)
    if options.gptq:
        codes, target = gptq(kernel, hessian, scale, bits, jnp.float32(options.damping))
    else:
        codes, target = codes_of(kernel, scale, bits), kernel
    return Rounded(QuantizedKernel(codes.astype(jnp.int8), scale), target)


def without_images(model: Model, ranges, wanted, weight_bits: dict[str, int], activation_bits, options: DefaultRecipe):
    """What is left of the recipe where there are only ranges: (params, sites), weights rounded to nearest."""
    sites = {name: clipping.uniform(*ranges[name], options.bits(name, activation_bits)) for name in wanted}
    kernels = {}
    for path, value in traverse_util.flatten_dict(model.params, sep="/").items():
        layer, _, leaf = path.rpartition("/")
        if leaf == "kernel":
            kernels[path] = QuantizedKernel(*quantizers.quantize_weights(value, weight_bits[layer]))
    return folding.changed(model.params, kernels), sites


def folded_model(model: Model, images: np.ndarray, activation_bits: int, options: DefaultRecipe) -> Model:
    """The float model with its per-channel ranges folded in: the same function, and what is quantized afterwards."""
    params, x, bits = model.params, images, Bits({}, activation_bits)
    for link in chain(model.module, model.params, model.image_shape):
        own = link.parameters(params)
        folded = fold(link.segment, inspect(link.segment, own, x), own, x, bits, options)
        x = streaming.propagate(link.segment, folded, {}, x)
        params = _replaced(params, link, folded)
    return model.replace(params=params)
