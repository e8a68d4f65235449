"""Function-preserving changes of parameters: per-channel scales and shifts moved through linear layers.

Each returns a new tree of parameters that computes the same function in exact arithmetic. That is how per-channel
ranges run per tensor (RepQ-ViT, Li et al., ICCV 2023; SmoothQuant, Xiao et al., ICML 2023), and, the other way round,
how a model is made hard to quantize without being changed. Shapes: o outputs, c channels.
"""

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

EPSILON = 1e-12
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


def changed(params: dict, changes: dict) -> dict:
    """The tree with {"path/to/leaf": array} replaced."""
    return traverse_util.unflatten_dict({**traverse_util.flatten_dict(params, sep="/"), **changes}, sep="/")


def blocks(params: dict) -> list[str]:
    """The names of a model's blocks, such as "block_0" or "stage_1/block_0"; params: a tree, or flat by "/"."""
    end = "/attention/qkv/kernel"
    return [name.removesuffix(end) for name in traverse_util.flatten_dict(params, sep="/") if name.endswith(end)]


def fold_norm(params: dict, norm: str, layers: tuple[str, ...], factor, shift) -> dict:
    """LayerNorm gives (y − shift)/factor in the place of y; the Dense layers that take it make up for both.

      scale' = scale/factor,  bias' = (bias − shift)/factor,  kernel' = factor·kernel,  bias'' = bias + shift·kernel

    Args:
      norm: path of the LayerNorm; layers: paths of the Dense layers. A kernel of t·c rows takes t norms of c channels
        side by side (class token beside mean token).
      factor, shift: [c]; shift must be zero where a layer has no bias.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    changes = {
        f"{norm}/scale": flat[f"{norm}/scale"] / factor,
        f"{norm}/bias": (flat[f"{norm}/bias"] - shift) / factor,
    }
    for layer in layers:
        kernel = flat[f"{layer}/kernel"]
        times = kernel.shape[0] // factor.shape[0]
        changes[f"{layer}/kernel"] = kernel * jnp.tile(factor, times)[:, None]
        if f"{layer}/bias" in flat:
            moved = jnp.matmul(jnp.tile(shift, times), kernel, precision="highest")
            changes[f"{layer}/bias"] = flat[f"{layer}/bias"] + moved
    return changed(params, changes)


def fold_values(params: dict, qkv: str, projection: str, factor, shift) -> dict:
    """Values become (v − shift)/factor; the projection makes up for it. Exact because attention rows sum to one.

    Args:
      factor, shift: [c], heads outermost; shift must be zero where qkv or the projection has no bias.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    kernel, c = flat[f"{projection}/kernel"], factor.shape[0]
    scale = jnp.concatenate([jnp.ones(2 * c), 1 / factor])
    changes = {f"{qkv}/kernel": flat[f"{qkv}/kernel"] * scale, f"{projection}/kernel": kernel * factor[:, None]}
    if f"{qkv}/bias" in flat:
        offset = jnp.concatenate([jnp.zeros(2 * c), shift])
        changes[f"{qkv}/bias"] = (flat[f"{qkv}/bias"] - offset) * scale
    if f"{projection}/bias" in flat:
        changes[f"{projection}/bias"] = flat[f"{projection}/bias"] + jnp.matmul(shift, kernel, precision="highest")
    return changed(params, changes)


def fold_queries(params: dict, qkv: str, factor, shift) -> dict:
    """Queries become factor·q, keys (k − shift)/factor. Exact: shifted keys add a constant to a row of logits.

    Args:
      factor, shift: [c], heads outermost; shift must be zero where qkv has no bias.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    c = factor.shape[0]
    scale = jnp.concatenate([factor, 1 / factor, jnp.ones(c)])
    changes = {f"{qkv}/kernel": flat[f"{qkv}/kernel"] * scale}
    if f"{qkv}/bias" in flat:
        offset = jnp.concatenate([jnp.zeros(c), shift, jnp.zeros(c)])
        changes[f"{qkv}/bias"] = (flat[f"{qkv}/bias"] - offset) * scale
    return changed(params, changes)


def change_bases(params: dict, qkv: str, projection: str, queries: np.ndarray, values: np.ndarray) -> dict:
    """Every head's queries become T·q, its keys T⁻ᵀ·k, its values and so what attention makes of them T·v.

    Args:
      queries, values: T of each head, [h, d, d] float64, invertible.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    heads, width, _ = queries.shape
    undone = np.linalg.inv(values).transpose(0, 2, 1)
    bases, changes = np.stack([queries, np.linalg.inv(queries).transpose(0, 2, 1), values]), {}
    for leaf in (f"{qkv}/kernel", f"{qkv}/bias"):
        if leaf in flat:
            columns = np.asarray(flat[leaf], np.float64).reshape(-1, 3, heads, width)
            changes[leaf] = np.einsum("ijhd,jhed->ijhe", columns, bases).reshape(flat[leaf].shape)
    rows = np.asarray(flat[f"{projection}/kernel"], np.float64).reshape(heads, width, -1)
    changes[f"{projection}/kernel"] = (undone @ rows).reshape(flat[f"{projection}/kernel"].shape)
    return changed(params, {leaf: jnp.asarray(value, jnp.float32) for leaf, value in changes.items()})


def fold_gated(params: dict, dense1: str, dense2: str, factor) -> dict:
    """Of a gated block (SwiGLU), the half that multiplies the gate is divided by factor; dense2 makes up for it.

    Args:
      factor: [c], the hidden width; dense1 has 2·c outputs, the gate's first.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    scale = jnp.concatenate([jnp.ones_like(factor), 1 / factor])
    return changed(params, {
        f"{dense1}/kernel": flat[f"{dense1}/kernel"] * scale,
        f"{dense1}/bias": flat[f"{dense1}/bias"] * scale,
        f"{dense2}/kernel": flat[f"{dense2}/kernel"] * factor[:, None],
    })  # fmt: skip


def fold_activation(params: dict, mlp: str, factor) -> dict:
    """What follows the activation of an `Mlp` is divided by factor; dense2 makes up for it.

    A GELU lets no factor through to the layer before it: the MLP keeps 1/factor, one product by channel when it runs.

    Args:
      factor: [c], the hidden width.
    """
    kernel = traverse_util.flatten_dict(params, sep="/")[f"{mlp}/dense2/kernel"]
    return changed(params, {f"{mlp}/activation_scale": 1 / factor, f"{mlp}/dense2/kernel": kernel * factor[:, None]})


def balance(low, high, kernel, strength) -> jnp.ndarray:
    """How much to divide each channel by: its half range^strength / its largest weight^(1 − strength), [c].

    1: all channels get the range [−1, 1]. The result follows the channels' scale, whatever the strength: a copy whose
    channels are scaled up here and down in the kernel comes out as the original does.

    Args:
      low, high: [c] range of the channels after their shift; kernel: [c or t·c, o], the weights that take them.
    """
    reach = jnp.maximum(jnp.maximum(jnp.abs(low), jnp.abs(high)), EPSILON)
    weights = jnp.max(jnp.abs(kernel).reshape(-1, reach.shape[0], kernel.shape[-1]), axis=(0, 2))
    weights = jnp.maximum(weights, EPSILON)
    # A channel that is never excited stays as it is. One that no weight takes vanishes: it must not widen the range.
    return jnp.where(reach <= EPSILON, 1.0, reach**strength / weights ** (1 - strength))


def searched_balance(low, high, square, kernel, weight_bits, activation_bits) -> jnp.ndarray:
    """The `balance` [c] of that strength which leaves the product the least expected squared error.

    The more the channels' ranges are evened out, the more the weights' differ: who has fewer bits should have it
    easier (AWQ, Lin et al., MLSys 2024, searches such a strength by the output's error; here in closed form).

    Args:
      low, high, square: [c] range and mean square of the channels after their shift; kernel: [c or t·c, o].
    """
    candidates = [balance(low, high, kernel, strength) for strength in STRENGTHS]
    costs = [rounding_cost(f, low, high, square, kernel, weight_bits, activation_bits) for f in candidates]
    return jnp.stack(candidates)[jnp.argmin(jnp.stack(costs))]


def rounding_cost(factor, low, high, square, kernel, weight_bits, activation_bits) -> jnp.ndarray:
    """12 times the expected squared error of a product whose inputs and weights are rounded to nearest, by `factor`."""
    times = kernel.shape[0] // factor.shape[0]
    scaled = kernel * jnp.tile(factor, times)[:, None]
    step = (jnp.max(high / factor) - jnp.min(low / factor)) / (2.0**activation_bits - 1)
    weight_steps = 2 * jnp.max(jnp.abs(scaled), axis=0) / (2.0**weight_bits - 1)
    inputs = times * jnp.sum(square / jnp.square(factor))
    return jnp.square(step) * jnp.sum(jnp.square(scaled)) + jnp.sum(jnp.square(weight_steps)) * inputs
