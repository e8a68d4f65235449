"""What a quantized model is made of: integer kernels and one small quantizer a site, all plain pytrees of arrays."""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from psaq_jax.quantization import quantizers


@functools.partial(jax.tree_util.register_dataclass, data_fields=["codes", "scale"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class QuantizedKernel:
    """Weights as integer codes int8 [..., channels] and one float32 scale per output channel [channels]."""

    codes: jax.Array
    scale: jax.Array

    def dequantize(self) -> jax.Array:
        return self.codes * self.scale


@functools.partial(jax.tree_util.register_dataclass, data_fields=["scale", "zero_point", "bits"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class UniformQuantizer:
    """One site's grid: (q − zero_point)·scale for whole q in 0..2^bits−1; all float32 scalars."""

    scale: jax.Array
    zero_point: jax.Array
    bits: jax.Array

    def __call__(self, x):
        codes = quantizers.quantize_activations(x.astype(jnp.float32), self.scale, self.zero_point, self.bits)
        return ((codes - self.zero_point) * self.scale).astype(x.dtype)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["scale", "steps", "bits", "shift"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class LogQuantizer:
    """A grid of powers, scale·2^(−q/steps) − shift, and −shift for the last code; finest at −shift.

    For softmax outputs without a shift, for GELU outputs with the shift that makes them positive. Codes q are whole,
    0..2^bits−1; `steps` a whole number of codes an octave (1: log2; 2: the log√2 of RepQ-ViT, Li et al., ICCV 2023;
    others, and the shift: the searched base of AdaLog, Wu et al., ECCV 2024). All fields float32 scalars.
    """

    scale: jax.Array
    steps: jax.Array
    bits: jax.Array
    shift: jax.Array | np.float32 = np.float32(0)

    def __call__(self, x):
        last = 2.0**self.bits - 1
        ratio = (x.astype(jnp.float32) + self.shift) / self.scale
        ratio = jnp.maximum(ratio, jnp.float32(1e-30))  # the logarithm stays finite
        codes = jnp.clip(jnp.round(-self.steps * jnp.log2(ratio)), 0, last)
        power = jnp.where(codes == last, 0.0, self.scale * jnp.exp2(-codes / self.steps))
        return (power - self.shift).astype(x.dtype)


SiteQuantizer = UniformQuantizer | LogQuantizer


def average_bits(bits: Mapping[str, int], sizes: Mapping[str, int]) -> float:
    """The bits of a weight on average; both {name of a kernel: …}, sizes in weights."""
    return sum(bits[name] * sizes[name] for name in bits) / sum(sizes[name] for name in bits)


def dequantize_params(params: dict) -> dict:
    """The tree with every `QuantizedKernel` as the float32 array that it stands for."""

    def is_kernel(x):
        return isinstance(x, QuantizedKernel)

    return jax.tree.map(lambda x: x.dequantize() if is_kernel(x) else x, params, is_leaf=is_kernel)
