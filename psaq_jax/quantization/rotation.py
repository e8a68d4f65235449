"""The residual stream of a plain vision transformer, rotated: the same function, without channels larger than others.

What a few channels hold is spread over all, so that LayerNorm outputs lie closer to normal, and few bits hold them
better (QuaRot, Ashkboos et al., NeurIPS 2024). A rotation passes a LayerNorm whose scale and bias went into the layers
behind it if it keeps the vector of ones: the mean over the channels is then the same. Shapes: c channels.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from psaq_jax.models.model import Model
from psaq_jax.models.vit import VisionTransformer
from psaq_jax.quantization.recipes import DefaultRecipe

TOKENS = ("class_token", "distillation_token", "register_tokens", "position_embedding")  # of the stream


def rotated(model: Model, options: DefaultRecipe | None) -> Model:
    """The same function, whose residual stream in every token is the model's times a rotation: what a recipe rounds.

    LayerScales go into the layers before them, the scales and biases of LayerNorms into those behind them.

    Args:
      options: None: of recipe "paper".
    Returns:
      the model itself where the recipe does not rotate, or no rotation passes: a Swin transformer, whose patches'
      LayerNorm writes into the stream, and a model whose qkv has no bias that could take the LayerNorm's.
    """
    module = model.module
    if options is None or not options.rotate or not isinstance(module, VisionTransformer) or not module.qkv_bias:
        return model
    turn = rotation(module.width, options.seed)
    flat = _rotated(traverse_util.flatten_dict(model.params, sep="/"), turn, module.depth)
    return model.replace(params=traverse_util.unflatten_dict(flat, sep="/"))


def rotation(width: int, seed: int) -> np.ndarray:
    """A random orthogonal matrix [c, c] float32 that keeps the vector of ones."""
    generator = np.random.default_rng(seed)

    def basis():
        columns = np.concatenate([np.ones((width, 1)), generator.normal(size=(width, width - 1))], axis=1)
        return np.linalg.qr(columns)[0]

    return (basis() @ basis().T).astype(np.float32)


@functools.partial(jax.jit, static_argnames="depth")
def _rotated(flat: dict, turn, depth: int) -> dict:
    product = functools.partial(jnp.matmul, precision="highest")
    changed = dict(flat) | {name: product(flat[name], turn) for name in TOKENS if name in flat}

    def write(layer, layer_scale=""):
        factor = flat.get(layer_scale, jnp.ones(len(turn)))
        for leaf in (f"{layer}/kernel", f"{layer}/bias"):
            changed[leaf] = product(flat[leaf] * factor, turn)
        if layer_scale in flat:
            changed[layer_scale] = jnp.ones_like(factor)

    def read(norm, *layers):
        scale, bias = flat[f"{norm}/scale"], flat[f"{norm}/bias"]
        for layer in layers:
            kernel = flat[f"{layer}/kernel"]
            parts = kernel.reshape(-1, len(turn), kernel.shape[1])  # a head may take several tokens side by side
            changed[f"{layer}/kernel"] = product(turn.T, scale[:, None] * parts).reshape(kernel.shape)
            changed[f"{layer}/bias"] = flat[f"{layer}/bias"] + product(bias, parts).sum(axis=0)
        changed[f"{norm}/scale"], changed[f"{norm}/bias"] = jnp.ones_like(scale), jnp.zeros_like(bias)

    write("patch_embedding")
    for block in (f"block_{i}" for i in range(depth)):
        read(f"{block}/norm1", f"{block}/attention/qkv")
        write(f"{block}/attention/projection", f"{block}/layer_scale1")
        read(f"{block}/norm2", f"{block}/mlp/dense1")
        write(f"{block}/mlp/dense2", f"{block}/layer_scale2")
    read("norm", *(head for head in ("head", "distillation_head") if f"{head}/kernel" in flat))
    return changed
