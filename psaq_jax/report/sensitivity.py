"""Which sites, kernels and blocks lose most when quantized alone: no label and no real image needed.

One jitted function serves every measurement: what is quantized is an argument, a switch for every site and
kernel, so all measurements and all bit-widths share one compilation.
"""

import re
from typing import NamedTuple

import jax
import numpy as np
from flax import traverse_util

from psaq_jax.evaluation import agreement
from psaq_jax.models.model import Model, exact_products
from psaq_jax.progress import Progress
from psaq_jax.quantization import integer_plan
from psaq_jax.quantization.calibration import calibrate, check_pixels
from psaq_jax.quantization.transform import QuantizedModel, check_same_architecture, dequantize_params, quantize
from psaq_jax.sites import apply_with_tap

HIGHEST_SQNR = 140.0  # dB; about float32's own resolution, and what identical logits get
BLOCK = re.compile(r"^(.*?block_\d+)/")


class Sensitivity(NamedTuple):
    """What the logits lose when one thing is quantized and all else stays float.

    Attributes:
      kind: "activations" (a site), "weights" (a kernel), "block" (all of a block's sites and kernels), "all".
      name: the site, the path of the kernel without "/kernel", the block, or "".
      sqnr_db: signal-to-quantization-noise ratio of the logits, 10·log10(Σ signal² / Σ error²), over images
        and classes, each image's mean logit removed (softmax ignores it); at most 140.
      agreement: percent of images whose top-1 stays the float model's.
    """

    kind: str
    name: str
    sqnr_db: float
    agreement: float


def measure_sensitivity(
    model: Model, quantized: QuantizedModel, pixels, progress: Progress | None = None
) -> list[Sensitivity]:
    """Quantizes one site, kernel or block at a time, then everything, and compares with the float logits.

    Takes one forward pass of all images for each site, kernel and block.

    Args:
      quantized: of `quantize(model, ...)`: its sites, its bits and, in recipe "paper", its grids are what is measured.
        Recipe "default" rewrites what surrounds a kernel (folded LayerNorms, corrected biases), so that no kernel
        means anything alone: it is measured on what it makes of ranges alone, those of `pixels`, and not everything
        at once, which would be another model.
      pixels: [n, height, width, 3] normalised: images like those of calibration, best not the same ones.
        (Noise against ranges of synthesized images measures how these clip it, and little else.)
      progress: called as progress(measurements done, measurements in all).
    Returns:
      Sites, then kernels, then blocks, each in running order, then, in recipe "paper", all together.
    Raises:
      InputError: images of another shape, or `quantized` was made from another architecture.
    """
    check_same_architecture(model, quantized, "sensitivity")
    pixels = check_pixels(model, pixels)
    own_grids = quantized.recipe == "paper"
    if not own_grids:
        bits, recipe = {path.removesuffix("/kernel"): own for path, own in quantized.kernel_bits}, quantized.recipe
        ranges, options = calibrate(model, pixels, recipe), quantized.options
        quantized = quantize(model, ranges, bits, quantized.activation_bits, recipe, options=options)
    sites, kernels = tuple(quantized.sites), kernel_paths(quantized)

    def logits(some_sites, some_kernels):
        site_switches = {name: name in some_sites for name in sites}
        kernel_switches = {name: name in some_kernels for name in kernels}
        return np.asarray(_logits(model, quantized.params, quantized.sites, pixels, site_switches, kernel_switches))

    plan = _plan(sites, kernels)[: None if own_grids else -1]
    reference, found = logits((), ()), []
    for one in plan:
        changed = logits(one.sites, one.kernels)
        found.append(Sensitivity(one.kind, one.name, sqnr_db(reference, changed), agreement(reference, changed)))
        if progress:
            progress(len(found), len(plan))
    return found


def sqnr_db(reference: np.ndarray, logits: np.ndarray) -> float:
    """Signal-to-quantization-noise ratio in dB of logits [n, classes] against the float ones, at most 140.

    What all logits of an image have in common changes no probability and doesn't count, where there are several.
    """
    reference, logits = reference.astype(np.float64), logits.astype(np.float64)
    if reference.shape[1] > 1:
        reference, logits = (x - x.mean(axis=1, keepdims=True) for x in (reference, logits))
    signal, error = np.sum(reference**2), np.sum((reference - logits) ** 2)
    if error <= signal * 10 ** (-HIGHEST_SQNR / 10):
        return HIGHEST_SQNR
    return float(10 * np.log10(max(signal, np.finfo(np.float64).tiny) / error))


def kernel_paths(q: QuantizedModel) -> tuple[str, ...]:
    """The layers with a quantized kernel, such as "block_0/mlp/dense1", in running order."""
    kernels = dict(q.kernel_bits)
    return tuple(product.name for product in integer_plan.plan(q) if f"{product.name}/kernel" in kernels)


def block_of(name: str) -> str | None:
    """The block that a site or kernel belongs to, "block_4" or "stage_1/block_0"; None outside of blocks."""
    match = BLOCK.match(name)
    return match[1] if match else None


class _Measurement(NamedTuple):
    kind: str
    name: str
    sites: frozenset[str]  # quantized in this measurement; all others stay float
    kernels: frozenset[str]


def _plan(sites: tuple[str, ...], kernels: tuple[str, ...]) -> list[_Measurement]:
    none = frozenset()
    plan = [_Measurement("activations", name, frozenset([name]), none) for name in sites]
    plan += [_Measurement("weights", name, none, frozenset([name])) for name in kernels]
    for block in dict.fromkeys(filter(None, map(block_of, (*sites, *kernels)))):
        inside = (frozenset(name for name in names if block_of(name) == block) for names in (sites, kernels))
        plan.append(_Measurement("block", block, *inside))
    return [*plan, _Measurement("all", "", frozenset(sites), frozenset(kernels))]


@jax.jit
def _logits(model: Model, quantized_params, quantizers, pixels, site_switches, kernel_switches):
    """Logits of the float model with the switched-on sites and kernels quantized."""
    params = traverse_util.flatten_dict(model.params, sep="/")
    rounded = traverse_util.flatten_dict(dequantize_params(quantized_params), sep="/")
    for name, switch in kernel_switches.items():
        path = f"{name}/kernel"
        params[path] = jax.lax.cond(switch, lambda a, b: b, lambda a, b: a, params[path], rounded[path])

    def tap(name, x):
        if name not in quantizers:
            return x
        return jax.lax.cond(site_switches[name], lambda y: quantizers[name](y), lambda y: y, x)  # computes one alone

    with exact_products(model.module.dtype):
        return apply_with_tap(model.module, traverse_util.unflatten_dict(params, sep="/"), pixels, tap)
