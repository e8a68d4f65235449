"""Which channels of a segment get ranges of their own, and their folding into the parameters (`folding`).

Shapes: c channels.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from psaq_jax.quantization import clipping, folding, statistics, streaming
from psaq_jax.quantization.recipes import MERGING, DefaultRecipe
from psaq_jax.quantization.segments import Parts

FEWEST = 16  # values that tell a channel's range; a head sees one or two a view
FLOAT_BITS = 16  # as good as floating point beside any weights


@dataclasses.dataclass(frozen=True)
class Bits:
    weights: dict[str, int]  # by layer, names relative to the segment
    activations: int | None  # None: floating point

    @property
    def inputs(self) -> int:
        """What folding takes the activations to have: those in floating point leave all errors to the weights."""
        return self.activations or FLOAT_BITS


@dataclasses.dataclass(frozen=True)
class NormFold:
    """A LayerNorm, the sites that see its output and the Dense layers that take it."""

    norm: str
    sites: tuple[str, ...]
    layers: tuple[str, ...]


NORM1 = NormFold("norm1", ("norm1_output",), ("attention/qkv",))
NORM2 = NormFold("norm2", ("norm2_output",), ("mlp/dense1",))
HIDDEN = "mlp/activation_output"
LEAST_REACH = 0.02  # of an activation's channel, as a part of the largest one's
HEADED = ("attention/query", "attention/key", "attention/value", "attention/attention_output")
HEADS_NORM = "norm"
HEADS = {"head_input": "head", "distillation_head_input": "distillation_head"}


def norm_folds(parts: Parts) -> list[NormFold]:
    """The folds that a segment offers."""
    folds = [fold for fold in (NORM1, NORM2) if fold.sites[0] in parts.sites]
    for name in parts.sites:
        if name.endswith(MERGING):
            merging = name.removesuffix("/norm_output")
            folds.append(NormFold(f"{merging}/norm", (name,), (f"{merging}/reduction",)))
    heads = tuple(name for name in HEADS if name in parts.sites)
    return folds + [NormFold(HEADS_NORM, heads, tuple(HEADS[name] for name in heads))] * bool(heads)


def fold(segment, parts: Parts, params, x, bits: Bits, options: DefaultRecipe) -> dict:
    """The segment's parameters with per-channel ranges folded in: the same function."""
    flat = traverse_util.flatten_dict(params, sep="/")
    folds = Folds(
        norms=tuple((fold, _may_shift(fold, parts, flat)) for fold in norm_folds(parts)) if options.fold_norms else (),
        gated=options.fold_norms and is_gated(flat),
        activation=options.fold_activations and folds_activation(parts, flat, bits),
        attention=options.fold_attention and "attention/query" in parts.sites,
    )
    if not folds.sites:
        return params
    widths = {site: statistics.width(site, parts.sites[site]) for site in folds.sites}
    # A head may take several tokens side by side: their channels are the norm's.
    widths |= {site: flat[f"{fold.norm}/scale"].shape[0] for fold, _ in folds.norms for site in fold.sites}
    moments = streaming.channel_moments(segment, params, x, widths)
    told = heads_by_norm(flat, folds) if len(x) < FEWEST else {}
    searched = {name: m for name, m in moments.items() if name not in told and (name != HIDDEN or folds.gated)}
    ends = best_channel_ranges(segment, params, x, searched, bits, options)
    moments, ends = moments | told, ends | {name: (m.low, m.high) for name, m in told.items()}
    own = {path: value for path, value in flat.items() if path.rpartition("/")[0] in folds.modules}
    layer_bits = {layer: (n, options.bits(layer, bits.inputs)) for layer, n in bits.weights.items()}
    return folding.changed(params, _folded(own, ends, moments, layer_bits, folds, options.folding_strength))


@dataclasses.dataclass(frozen=True)
class Folds:
    """What is folded in a segment."""

    norms: tuple[tuple[NormFold, bool], ...]  # and whether their channels may be shifted
    gated: bool
    activation: bool
    attention: bool

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites whose channels are evened out."""
        of_norms = (site for fold, _ in self.norms for site in fold.sites)
        return (*of_norms, *(HIDDEN,) * (self.gated or self.activation), *HEADED * self.attention)

    @property
    def modules(self) -> tuple[str, ...]:
        """The LayerNorms and Dense layers that change."""
        of_norms = (name for fold, _ in self.norms for name in (fold.norm, *fold.layers))
        of_attention = ("attention/qkv", "attention/projection") * self.attention
        return (*of_norms, *("mlp/dense1", "mlp/dense2") * (self.gated or self.activation), *of_attention)


def heads_by_norm(flat: dict, folds: Folds) -> dict[str, streaming.Moments]:
    """{site of a head: what the scale and bias of the LayerNorm before it say of its channels}: three deviations."""
    found = {}
    for site in (site for item, _ in folds.norms if item.norm == HEADS_NORM for site in item.sites):
        deviation, mean = jnp.abs(flat[f"{HEADS_NORM}/scale"]), flat[f"{HEADS_NORM}/bias"]
        square = jnp.square(mean) + jnp.square(deviation)
        found[site] = streaming.Moments(mean - 3 * deviation, mean + 3 * deviation, mean, square)
    return found


@functools.partial(jax.jit, static_argnames=("folds", "strength"))
def _folded(flat: dict, ends: dict, moments: dict, bits: dict, folds: Folds, strength: float | None) -> dict:
    """{path: value} of everything in `flat` after folding; bits: {layer: (weights, inputs)}.

    The LayerNorms come last: what their channels are divided by goes by the kernels that take them, whose outputs are
    then evened out, as large in a copy with outlier channels as in the original.
    """
    params = traverse_util.unflatten_dict(flat, sep="/")
    if folds.gated:
        kernel = flat["mlp/dense2/kernel"]
        factor = channel_factor(*ends[HIDDEN], moments[HIDDEN].square, kernel, bits["mlp/dense2"], strength)
        params = folding.fold_gated(params, "mlp/dense1", "mlp/dense2", factor)
    if folds.activation:
        params = folding.fold_activation(params, "mlp", activation_factor(moments[HIDDEN]))
    if folds.attention:
        params = fold_attention(params, flat, ends, moments, bits, strength)
    flat = traverse_util.flatten_dict(params, sep="/")
    for item, may_shift in folds.norms:
        low = jnp.min(jnp.stack([ends[site][0] for site in item.sites]), 0)
        high = jnp.max(jnp.stack([ends[site][1] for site in item.sites]), 0)
        shift = (low + high) / 2 * may_shift
        kernel = jnp.concatenate([flat[f"{layer}/kernel"] for layer in item.layers], axis=1)
        square = jnp.max(jnp.stack([moments[site].variance_about(shift) for site in item.sites]), 0)
        factor = channel_factor(low - shift, high - shift, square, kernel, bits[item.layers[0]], strength)
        params = folding.fold_norm(params, item.norm, item.layers, factor, shift)
    return traverse_util.flatten_dict(params, sep="/")


def channel_factor(low, high, square, kernel, bits: tuple, strength: float | None) -> jax.Array:
    """What to divide the channels by, [c]; see `folding`."""
    if strength is None:
        return folding.searched_balance(low, high, square, kernel, *bits)
    return folding.balance(low, high, kernel, strength)


def activation_factor(moments: streaming.Moments) -> jax.Array:
    """What to divide the channels of a GELU's output by, [c]: the root of how far each reaches, zero being fixed.

    Equal ranges would lie closest on calibration images, but leave no room to channels that only others excite.
    """
    reach = jnp.maximum(jnp.abs(moments.low), jnp.abs(moments.high))
    return jnp.sqrt(jnp.maximum(reach, jnp.maximum(LEAST_REACH * reach.max(), folding.EPSILON)))


def folds_activation(parts: Parts, flat: dict, bits: Bits) -> bool:
    """Whether channels of an activation get scales: below 8 bits its searched grid loses less without them."""
    return HIDDEN in parts.sites and not is_gated(flat) and (bits.activations or 0) >= 8


def is_gated(flat: dict) -> bool:
    """Whether a block's MLP is a SwiGLU: its first layer is twice as wide as what its second takes."""
    if "mlp/dense2/kernel" not in flat:
        return False
    return flat["mlp/dense1/kernel"].shape[1] == 2 * flat["mlp/dense2/kernel"].shape[0]


def best_channel_ranges(segment, params, x, moments, bits: Bits, options: DefaultRecipe) -> dict:
    """{site: (low [c], high [c])}."""
    if not options.search_ranges:
        return {name: (m.low, m.high) for name, m in moments.items()}
    counts = streaming.channel_histograms(segment, params, x, moments)
    ends = {}
    for name, m in moments.items():
        centers = statistics.bin_centers(m.low, m.high, streaming.CHANNEL_BINS)
        site_bits = np.float32(options.bits(name, bits.inputs))
        ends[name] = clipping.channel_ranges(counts[name], centers, m.low, m.high, site_bits, options.coverage)
    return ends


def fold_attention(params, flat, ends, moments, bits: dict, strength: float | None) -> dict:
    """Values with the projection, then queries with keys."""
    qkv, projection = "attention/qkv", "attention/projection"
    movable = f"{qkv}/bias" in flat and f"{projection}/bias" in flat
    (low, high), (output_low, output_high) = ends["attention/value"], ends["attention/attention_output"]
    shift = (low + high) / 2 * movable
    # The value and the attention output share their channels: the geometric mean of both ranges serves both.
    reach = jnp.sqrt(
        jnp.maximum(high - shift, shift - low) * jnp.maximum(jnp.abs(output_low - shift), jnp.abs(output_high - shift))
    )
    square = moments["attention/attention_output"].variance_about(shift)
    factor = channel_factor(-reach, reach, square, flat[f"{projection}/kernel"], bits[projection], strength)
    params = folding.fold_values(params, qkv, projection, factor, shift)
    low, high = ends["attention/key"]
    shift = (low + high) / 2 * (f"{qkv}/bias" in flat)
    key = jnp.maximum(jnp.maximum(jnp.abs(low - shift), jnp.abs(high - shift)), folding.EPSILON)
    query = jnp.maximum(jnp.maximum(*map(jnp.abs, ends["attention/query"])), folding.EPSILON)
    return folding.fold_queries(params, qkv, jnp.sqrt(key / query), shift)


def _may_shift(item: NormFold, parts: Parts, flat: dict) -> bool:
    """Whether all layers have a bias, and no padding of zeros comes between the norm and a layer."""
    for site, layer in zip(item.sites, item.layers, strict=True):
        padded = math.prod(parts.sites[site]) != math.prod(parts.layers[layer])
        if padded or f"{layer}/bias" not in flat:
            return False
    return True
