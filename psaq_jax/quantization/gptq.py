"""Weights rounded with second-order information: GPTQ, then coordinate descent.

GPTQ (Frantar et al., ICLR 2023) rounds one input channel at a time, each error made up for by the channels that follow,
here with the channels in order of falling curvature. Coordinate descent (QuantEase, Behdin et al., 2023) then goes over
them again, each rounded to what is best while all others stay. Both in blocks of channels, in one jitted scan.
Shapes: i input channels, o output channels. Kernels are [i, o].
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from psaq_jax.quantization.quantizers import LEAST_SCALE, weight_scale

BLOCK = 64
SWEEPS = 4  # of coordinate descent; the first brings most
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
        return jnp.matmul(curvature, jnp.square(codes_of(kernel, scale, bits) * scale - kernel), precision="highest")

    errors = jax.lax.map(error, jnp.asarray(SHRINKS))
    return jnp.maximum(full * jnp.asarray(SHRINKS)[jnp.argmin(errors, axis=0)], LEAST_SCALE)


@jax.jit
def gptq(kernel, hessian, scale, bits, damping):
    """Integer codes that (greedily) minimise tr((W − Ŵ)ᵀ H (W − Ŵ)).

    Args:
      kernel: [i, o] float32; hessian: [i, i], second moments of the inputs (any positive factor).
      scale: [o]; bits, damping: scalars, may be traced. Damping is a part of the mean diagonal.
    Returns:
      (codes float32 [i, o], target float32 [i, o]): codes are `target/scale` rounded and clipped, target being the
      weights after what earlier channels asked of them.
    """
    order, rest, hessian = _in_order(kernel, hessian, damping)
    inverse = jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(hessian), jnp.eye(len(rest)))
    upper = jnp.linalg.cholesky((inverse + inverse.T) / 2).T

    def columns(rest, start):
        own, rows, square = _block(rest, upper, start)

        def column(own, j):
            target = own[j]
            codes = codes_of(target, scale, bits)
            error = (target - codes * scale) / square[j, j]
            return own - square[j][:, None] * error, (codes, target, error)

        _, (codes, targets, errors) = jax.lax.scan(column, own, jnp.arange(BLOCK))
        return rest - jnp.matmul(rows.T, errors, precision="highest"), (codes, targets)

    _, found = jax.lax.scan(columns, rest, jnp.arange(0, len(rest), BLOCK))
    return tuple(_put_back(x, order) for x in found)


@functools.partial(jax.jit, static_argnames="sweeps")
def coordinate_descent(kernel, hessian, codes, scale, bits, damping, sweeps: int = SWEEPS):
    """Codes and scales that no single change would better, or nearly: tr((W − Ŵ)ᵀ H (W − Ŵ)) never grows.

    Each sweep first finds every output channel's best scale for its codes, in closed form.

    Args:
      codes: [i, o] float32, where to begin; the others as `gptq` takes them, and `sweeps` over the input channels.
    Returns:
      (codes, target, scale [o]): codes are `target/scale` rounded and clipped.
    """
    order, kernel, hessian = _in_order(kernel, hessian, damping)
    codes = jnp.pad(codes[order], ((0, len(kernel) - len(codes)), (0, 0)))
    product = functools.partial(jnp.matmul, precision="highest")

    def sweep(carry, _):
        codes, scale = carry
        weighed = product(hessian, codes)
        best, size = jnp.sum(weighed * kernel, axis=0), jnp.sum(weighed * codes, axis=0)
        scale = jnp.where((best > 0) & (size > 0), jnp.maximum(best / jnp.where(size > 0, size, 1), LEAST_SCALE), scale)

        def columns(pull, found):  # pull: H (W − Ŵ)
            start, mine = found
            own, rows, square = _block(pull, hessian, start)

            def column(own, j):
                target = mine[j] * scale + own[j] / square[j, j]
                new = codes_of(target, scale, bits)
                change = (new - mine[j]) * scale
                return own - square[j][:, None] * change, (new, target, change)

            _, (new, targets, changes) = jax.lax.scan(column, own, jnp.arange(BLOCK))
            return pull - product(rows.T, changes), (new, targets)

        blocks = jnp.arange(0, len(kernel), BLOCK), codes.reshape(-1, BLOCK, codes.shape[1])
        _, (new, targets) = jax.lax.scan(columns, product(hessian, kernel - codes * scale), blocks)
        return (new.reshape(codes.shape), scale), targets

    (codes, scale), targets = jax.lax.scan(sweep, (codes, scale), length=sweeps)
    return _put_back(codes, order), _put_back(targets[-1], order), scale


def _block(values, matrix, start):
    """Of `BLOCK` channels from `start` on: (their rows of the values, of the matrix, and their part of the matrix)."""
    own, rows = (jax.lax.dynamic_slice_in_dim(x, start, BLOCK) for x in (values, matrix))
    return own, rows, jax.lax.dynamic_slice_in_dim(rows, start, BLOCK, axis=1)


def _in_order(kernel, hessian, damping):
    """(order [i], kernel, hessian): channels by falling curvature, damped, and filled up to whole blocks by channels
    that nothing depends on.
    """
    diagonal, padding = jnp.diagonal(hessian), -len(kernel) % BLOCK
    order = jnp.argsort(-diagonal)
    hessian = hessian[order][:, order] + jnp.eye(len(kernel)) * jnp.maximum(damping * diagonal.mean(), 1e-20)
    hessian = jnp.pad(hessian, ((0, padding), (0, padding)))
    hessian += jnp.diag((jnp.arange(len(hessian)) >= len(kernel)) * jnp.maximum(diagonal.mean(), 1e-20))
    return order, jnp.pad(kernel[order], ((0, padding), (0, 0))), hessian


def _put_back(x, order):
    """[blocks, block, o] or [rows, o] in order -> [i, o] as it was, without what was filled up."""
    return x.reshape(-1, x.shape[-1])[: len(order)][jnp.argsort(order)]
