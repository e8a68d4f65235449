"""Weights rounded by the second moments of a layer's inputs and of the gradients at its outputs.

GPTQ (`gptq`) makes the error of every output small on its own. What reaches the logits are combinations of outputs, and
there errors can make up for each other: a weight's error is handed on to later inputs and later outputs (YAQA, Tseng et
al., 2025, whose rounding this is, with the Fisher matrix as a Kronecker product). A weight waits only for those with
earlier inputs and outputs, so that a whole antidiagonal of the kernel is rounded at once: i + o steps in one scan.
Shapes: i input channels, o output channels; n ≤ m the lesser and the greater of them.
"""

import jax
import jax.numpy as jnp

from psaq_jax.quantization.gptq import codes_of

CORRELATED = 0.6  # the part of the outputs' correlations that counts: synthesized images know them only roughly


@jax.jit
def two_sided(kernel, inputs, outputs, scale, bits, damping):
    """Integer codes that (greedily) minimise tr(O (W − Ŵ)ᵀ H (W − Ŵ)).

    Args:
      kernel: [i, o] float32; inputs: H [i, i], second moments of the inputs (any positive factor).
      outputs: O [o, o], of the gradients at the outputs (any positive factor).
      scale: [o]; bits, damping: scalars, may be traced. Damping is a part of the mean diagonal of H.
    Returns:
      (codes float32 [i, o], target float32 [i, o]): codes are `target/scale` rounded and clipped.
    """
    diagonal = jnp.diagonal(inputs)
    inputs += jnp.eye(len(inputs)) * jnp.maximum(damping * diagonal.mean(), 1e-20)
    own = jnp.diagonal(outputs)
    own = jnp.where(own > 0, own, 1)  # an output that moves no logit is rounded on its own
    outputs = jnp.where(jnp.eye(len(own)), jnp.diag(own), CORRELATED * outputs)
    order, output_order = jnp.argsort(-diagonal), jnp.argsort(-own * jnp.square(scale))
    rest, scales = kernel[order][:, output_order], jnp.broadcast_to(scale[output_order], kernel.shape)
    by_input = _feedback(inputs[order][:, order])
    by_output = _feedback(outputs[output_order][:, output_order])
    if len(kernel) > kernel.shape[1]:
        targets = _targets(rest.T, by_output, by_input, scales.T, bits).T
    else:
        targets = _targets(rest, by_input, by_output, scales, bits)
    target = targets[jnp.argsort(order)][:, jnp.argsort(output_order)]
    return codes_of(target, scale, bits), target


def _feedback(moments):
    """The strictly upper U of M = (1 + U) D (1 + U)ᵀ: what a channel's error asks of each later one."""
    lower = jnp.linalg.cholesky(moments[::-1, ::-1])
    return (lower / jnp.diagonal(lower))[::-1, ::-1] - jnp.eye(len(moments))


def _targets(kernel, by_row, by_column, scales, bits):
    """What each weight of [n, m] is rounded from, in order: (1 + U)ᵀ E (1 + V) is made small from its first corner on.

    Step k rounds the weights (r, k − r). Windows of n columns that move over arrays turned round give each row its own.
    """
    n, m = kernel.shape
    rows = jnp.arange(n)
    feedback, weights, sizes = (_turned(x, n) for x in (by_column, kernel, scales))

    def step(carry, k):
        errors, sums = carry  # E turned [n, m + 2n]; transposed (1 + U)ᵀ E [m, n]

        def window(x):  # column r: column k − r of what was turned
            return jax.lax.dynamic_slice_in_dim(x, n + m - 1 - k, n, axis=1)

        weight, scale, here = jnp.diagonal(window(weights)), jnp.diagonal(window(sizes)), window(errors)
        above = jnp.sum(by_row * here, axis=0)
        target = weight + above + jnp.sum(sums * window(feedback), axis=0)
        inside = (rows <= k) & (k < rows + m)
        error = jnp.where(inside, weight - codes_of(target, jnp.where(inside, scale, 1), bits) * scale, 0)
        errors = jax.lax.dynamic_update_slice_in_dim(errors, here + jnp.diag(error), n + m - 1 - k, axis=1)
        sums = sums.at[jnp.where(inside, k - rows, m), rows].set(above + error, mode="drop")
        return (errors, sums), target

    _, targets = jax.lax.scan(step, (jnp.zeros((n, m + 2 * n)), jnp.zeros((m, n))), jnp.arange(n + m - 1))
    return targets[rows[:, None] + jnp.arange(m), rows[:, None]]


def _turned(x, n):
    """[..., m] the other way round, between n columns of zeros: column c is column n + m − 1 − c."""
    return jnp.pad(x[:, ::-1], ((0, 0), (n, n)))
