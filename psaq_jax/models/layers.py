"""Layers that every family shares. Shapes: b batch, n tokens, h heads, d head width, c channels, p patch pixels."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from psaq_jax.sites import Site, intercepted


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """The exact (erf) GELU. Its derivative is computed in the forward pass, beside the value that shares its erf:
    left to automatic differentiation, XLA writes four intermediate arrays and the backward pass takes twice as long.
    """
    return nn.gelu(x, approximate=False)


def _gelu_forward(x):
    cumulative = 0.5 * (1 + jax.lax.erf(x * np.sqrt(0.5).astype(x.dtype)))
    density = jnp.exp(-0.5 * x * x) * np.sqrt(0.5 / np.pi).astype(x.dtype)
    return jax.lax.optimization_barrier((x * cumulative, cumulative + x * density))


gelu.defvjp(_gelu_forward, lambda derivative, cotangent: (cotangent * derivative,))


@jax.custom_vjp
def softmax(logits: jax.Array) -> jax.Array:
    """Softmax over the last axis, in float32. The derivative needs the result alone, and no division: XLA turns
    divisions by a row's sum into products or not depending on the partitioning, and images would depend on it.
    """
    logits = logits.astype(jnp.float32)
    weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    return weights * (1 / jnp.sum(weights, axis=-1, keepdims=True))


def _softmax_forward(logits):
    result = softmax(logits)
    return result, (result, jnp.zeros((), logits.dtype))


def _softmax_backward(residuals, cotangent):
    result, like = residuals
    inner = jnp.sum(result * cotangent, axis=-1, keepdims=True)
    return ((result * (cotangent - inner)).astype(like.dtype),)


softmax.defvjp(_softmax_forward, _softmax_backward)

tanh_gelu = functools.partial(nn.gelu, approximate=True)

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": gelu,
    "gelu_python": gelu,
    "gelu_new": tanh_gelu,
    "gelu_fast": tanh_gelu,
    "gelu_accurate": tanh_gelu,
    "gelu_pytorch_tanh": tanh_gelu,
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
    "relu": nn.relu,
    "silu": nn.silu,
    "swish": nn.silu,
}


def layer_norm(name: str, epsilon: float, dtype) -> nn.LayerNorm:
    """LayerNorm over the channels, with the two-pass variance that checkpoints were trained with."""
    return nn.LayerNorm(epsilon=epsilon, use_fast_variance=False, dtype=dtype, name=name)


def patchify(pixels: jax.Array, patch_size: tuple[int, int]) -> jax.Array:
    """Images [b, rows·ph, columns·pw, c] -> patches [b, rows·columns, ph·pw·c], row-major, a remainder cut off."""
    batch, height, width, channels = pixels.shape
    ph, pw = patch_size
    rows, columns = height // ph, width // pw
    x = pixels[:, : rows * ph, : columns * pw]
    x = x.reshape(batch, rows, ph, columns, pw * channels)  # one axis: alone, three channels fill few of a TPU's lanes
    return x.transpose(0, 1, 3, 2, 4).reshape(batch, rows * columns, ph * pw * channels)


def heads_apart(x: jax.Array, heads: int, bias: bool, dtype) -> list[jax.Array]:
    """Queries, keys and values [b, h, n, d] of tokens [b, n, c], by layer `qkv` of the attention that calls this."""
    b, n, c = x.shape
    qkv = nn.Dense(3 * c, use_bias=bias, dtype=dtype, name="qkv")(x)
    parts = jnp.split(Site(name="qkv_output")(qkv), 3, axis=-1)  # which, unlike slices, derive to one concatenation
    parts = [x.reshape(b, n, heads, c // heads).transpose(0, 2, 1, 3) for x in parts]
    return [Site(name=name)(x) for name, x in zip(("query", "key", "value"), parts, strict=True)]


def fused_attention(query, key, value, implementation: str) -> jax.Array:
    """softmax(q·kᵀ/√d)·v of [b, h, n, d] in one operation: neither logits nor probabilities are sites, or in memory.

    implementation: of `jax.nn.dot_product_attention`: "cudnn" (flash attention of 16-bit floats on NVIDIA's GPUs) or
      "xla" (anywhere, and they are in memory).
    """
    tokens = query.shape[2]
    odd = tokens % 2  # of which cuDNN computes no gradients
    query, key, value = (
        jnp.pad(x.transpose(0, 2, 1, 3), ((0, 0), (0, odd), (0, 0), (0, 0))) for x in (query, key, value)
    )
    lengths = jnp.full(len(query), tokens, jnp.int32) if odd else None
    x = jax.nn.dot_product_attention(
        query, key, value, query_seq_lengths=lengths, key_value_seq_lengths=lengths, implementation=implementation
    )
    return x[:, :tokens].transpose(0, 2, 1, 3)


class Product(nn.Module):
    """`einsum(equation, scale·a, b)` of two activations: a module, so that it has a path by which it can be replaced.

    The equation contracts the last axis of a.
    """

    equation: str
    scale: float = 1.0

    def __call__(self, a, b):
        return jnp.einsum(self.equation, a if self.scale == 1 else a * self.scale, b)


def matrix_products(module: nn.Module, params, pixels) -> list[tuple[str, int, int]]:
    """(path, terms of one sum, multiply-adds) of every Dense and Product of a forward pass, in running order.

    Parameters and pixels may be shapes: nothing is computed. Multiply-adds of tokens that pad a Swin's windows count.
    """
    found = []

    def see(name, called, args, run):
        y = run()
        if isinstance(called, nn.Dense | Product):
            terms = args[0].shape[-1]
            found.append((name, terms, y.size * terms))
        return y

    with intercepted(see):
        jax.eval_shape(lambda params, pixels: module.apply({"params": params}, pixels), params, pixels)
    return found


class Mlp(nn.Module):
    """Dense, activation, Dense: [..., c] -> [..., c].

    Where the parameters have an `activation_scale` [hidden], it multiplies the activation: checkpoints have none,
    quantizing gives them one (`quantization.folding.fold_activation`).
    """

    hidden: int
    activation: str
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        width = x.shape[-1]
        x = nn.Dense(self.hidden, dtype=self.dtype, name="dense1")(x)
        x = ACTIVATIONS[self.activation](x)
        if self.has_variable("params", "activation_scale"):
            x = x * self.get_variable("params", "activation_scale").astype(self.dtype)
        x = Site(name="activation_output")(x)
        return Site(name="dense2_output")(nn.Dense(width, dtype=self.dtype, name="dense2")(x))


class SwiGlu(nn.Module):
    """DINOv2's gated form: Dense to twice the hidden width, silu(first half)·second half, Dense."""

    hidden: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        width = x.shape[-1]
        gate, value = jnp.split(nn.Dense(2 * self.hidden, dtype=self.dtype, name="dense1")(x), 2, axis=-1)
        x = Site(name="activation_output")(nn.silu(gate) * value)
        return Site(name="dense2_output")(nn.Dense(width, dtype=self.dtype, name="dense2")(x))
