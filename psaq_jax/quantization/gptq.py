"""GPTQ: weights rounded one input channel at a time, each error made up for by the channels that follow.

Frantar et al., ICLR 2023 ("GPTQ"), with the columns in order of falling curvature and in blocks, in one jitted scan.
Shapes: i input channels, o output channels. Kernels are [i, o].
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from psaq_jax.quantization.quantizers import LEAST_SCALE, weight_scale

BLOCK = 64
SHRINKS = np.linspace(0.4, 1.0, 31, dtype=np.float32)


def codes_of(kernel, scale, bits):
    """Nearest integer codes −2^(b−1)..2^(b−1)−1, float32."""
    bound = 2.0 ** (bits - 1)
    return jnp.clip(jnp.round(kernel / scale), -bound, bound - 1)


@jax.jit
def searched_scale(kernel, curvature, bits):
    """Per output channel, the part of the largest weight that leaves the least Σ_i curvature_i·error_i²: [o].

    Args:
      kernel: [i, o]; curvature: [i], the second moments of the inputs; bits: float32, may be traced.
    """
    full = weight_scale(kernel, bits)

    def error(shrink):
        scale = jnp.maximum(full * shrink, LEAST_SCALE)
        return curvature @ jnp.square(codes_of(kernel, scale, bits) * scale - kernel)

    errors = jax.lax.map(error, jnp.asarray(SHRINKS))
    return jnp.maximum(full * jnp.asarray(SHRINKS)[jnp.argmin(errors, axis=0)], LEAST_SCALE)


@functools.partial(jax.jit, static_argnames="block")
def gptq(kernel, hessian, scale, bits, damping, block: int = BLOCK):
    """Integer codes that (greedily) minimise tr((W − Ŵ)ᵀ H (W − Ŵ)).

    Args:
      kernel: [i, o] float32; hessian: [i, i], second moments of the inputs (any positive factor).
      scale: [o]; bits, damping: scalars, may be traced. Damping is a part of the mean diagonal.
    Returns:
      (codes float32 [i, o], target float32 [i, o]): codes are `target/scale` rounded and clipped, target being the
      weights after what earlier channels asked of them.
    """
    inputs = kernel.shape[0]
    diagonal = jnp.diagonal(hessian)
    order = jnp.argsort(-diagonal)
    hessian = hessian[order][:, order] + jnp.eye(inputs) * jnp.maximum(damping * diagonal.mean(), 1e-20)
    padding = -inputs % block
    hessian = jnp.pad(hessian, ((0, padding), (0, padding)))
    hessian += jnp.diag((jnp.arange(inputs + padding) >= inputs) * jnp.maximum(diagonal.mean(), 1e-20))
    inverse = jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(hessian), jnp.eye(inputs + padding))
    upper = jnp.linalg.cholesky((inverse + inverse.T) / 2).T
    rest = jnp.pad(kernel[order], ((0, padding), (0, 0)))

    def columns(rest, start):
        own = jax.lax.dynamic_slice_in_dim(rest, start, block)
        rows = jax.lax.dynamic_slice_in_dim(upper, start, block)
        square = jax.lax.dynamic_slice_in_dim(rows, start, block, axis=1)

        def column(own, j):
            target = own[j]
            codes = codes_of(target, scale, bits)
            error = (target - codes * scale) / square[j, j]
            return own - square[j][:, None] * error, (codes, target, error)

        _, (codes, targets, errors) = jax.lax.scan(column, own, jnp.arange(block))
        return rest - rows.T @ errors, (codes, targets)

    _, found = jax.lax.scan(columns, rest, jnp.arange(0, inputs + padding, block))
    back = jnp.argsort(order)
    return tuple(x.reshape(inputs + padding, -1)[:inputs][back] for x in found)
