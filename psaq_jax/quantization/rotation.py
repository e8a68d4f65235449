"""The residual stream of a vision transformer, rotated: the same function, without channels larger than others.

What a few channels hold is spread over all, so that LayerNorm outputs lie closer to normal, and few bits hold them
better (QuaRot, Ashkboos et al., NeurIPS 2024). A rotation passes a LayerNorm whose scale and bias went into the layers
behind it if it keeps the vector of ones: the mean over the channels is then the same. A Swin transformer has a stream
per stage, each turned on its own from the merging that begins it; the first, which a LayerNorm begins, stays.
Shapes: c channels.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from psaq_jax.models.model import Model
from psaq_jax.models.swin import SwinTransformer
from psaq_jax.models.vit import VisionTransformer
from psaq_jax.quantization.recipes import DefaultRecipe

TOKENS = ("class_token", "distillation_token", "register_tokens", "position_embedding")  # of a ViT's stream


class Stream(NamedTuple):
    """A residual stream by what writes into it and what reads it; all but `width` are paths of parameters."""

    width: int
    begins: str  # the layer that writes first
    blocks: tuple[str, ...]
    ends: tuple[str, tuple[str, ...]]  # the last LayerNorm and the layers that take its output


def rotated(model: Model, options: DefaultRecipe) -> Model:
    """The same function, whose residual stream in every token is the model's times a rotation: what a recipe rounds.

    LayerScales go into the layers before them, the scales and biases of LayerNorms into those behind them.

    Returns:
      the model itself where the recipe does not rotate, or where qkv has no bias that could take the LayerNorm's.
    """
    if not rotates(model, options):
        return model
    flat = traverse_util.flatten_dict(model.params, sep="/")
    for stream in streams(model.module, flat):
        flat = turn_stream(flat, rotation(stream.width, options.seed), stream)
    return model.replace(params=traverse_util.unflatten_dict(flat, sep="/"))


def rotates(model: Model, options: DefaultRecipe) -> bool:
    return options.rotate and model.module.qkv_bias


def streams(module: VisionTransformer | SwinTransformer, flat: dict) -> list[Stream]:
    """Those that a rotation passes; of a Swin transformer from the second stage on, where windows fill the maps and the
    merging behind can take the bias before it.
    """
    end = "norm", tuple(head for head in ("head", "distillation_head") if f"{head}/kernel" in flat)
    if isinstance(module, VisionTransformer):
        return [Stream(module.width, "patch_embedding", tuple(f"block_{i}" for i in range(module.depth)), end)]
    found, last = [], len(module.depths) - 1
    for i in range(1, last + 1):
        merging = f"stage_{i}/merging"
        blocks = tuple(f"stage_{i}/block_{k}" for k in range(module.depths[i]))
        ends = end if i == last else (f"{merging}/norm", (f"{merging}/reduction",))
        if not module.pads(i) and (i == last or _takes_bias(flat, *ends)):
            found.append(Stream(module.widths[i], f"stage_{i - 1}/merging/reduction", blocks, ends))
    return found


def _takes_bias(flat: dict, norm: str, layers: tuple[str, ...]) -> bool:
    """Whether some bias before the merging gives what the LayerNorm's gives now, once its scale is in the kernel: not
    where too many scales are zero.
    """
    names = f"{norm}/scale", f"{norm}/bias", f"{layers[0]}/kernel"
    scale, bias, kernel = (np.asarray(flat[name], np.float64) for name in names)
    scaled, constant = scale[:, None] * kernel, bias @ kernel
    found = np.linalg.lstsq(scaled.T, constant, rcond=1e-6)[0] @ scaled
    return bool(np.linalg.norm(found - constant) <= 1e-4 * np.linalg.norm(constant))


def rotation(width: int, seed: int) -> np.ndarray:
    """A random orthogonal matrix [c, c] float32 that keeps the vector of ones."""
    generator = np.random.default_rng(seed)

    def basis():
        columns = np.concatenate([np.ones((width, 1)), generator.normal(size=(width, width - 1))], axis=1)
        return np.linalg.qr(columns)[0]

    return (basis() @ basis().T).astype(np.float32)


@functools.partial(jax.jit, static_argnames="stream")
def turn_stream(flat: dict, turn, stream: Stream) -> dict:
    """{path: value} of the same function whose stream is the given one's times `turn` [c, c]."""
    product = functools.partial(jnp.matmul, precision="highest")
    changed = dict(flat) | {name: product(flat[name], turn) for name in TOKENS if name in flat}

    def write(layer, layer_scale=""):
        factor = flat.get(layer_scale, jnp.ones(len(turn)))
        for leaf in (f"{layer}/kernel", f"{layer}/bias"):
            if leaf in flat:
                changed[leaf] = product(flat[leaf] * factor, turn)
        if layer_scale in flat:
            changed[layer_scale] = jnp.ones_like(factor)

    def read(norm, *layers):
        scale, bias = flat[f"{norm}/scale"], flat[f"{norm}/bias"]
        changed[f"{norm}/scale"], changed[f"{norm}/bias"] = jnp.ones_like(scale), jnp.zeros_like(bias)
        for layer in layers:
            kernel = flat[f"{layer}/kernel"]
            times = len(kernel) // len(scale)  # a head may take several tokens side by side
            constant = product(jnp.tile(bias, times), kernel)
            parts = (jnp.tile(scale, times)[:, None] * kernel).reshape(-1, len(turn), kernel.shape[1])
            kernel = changed[f"{layer}/kernel"] = product(turn.T, parts).reshape(kernel.shape)
            if f"{layer}/bias" in flat:
                changed[f"{layer}/bias"] = flat[f"{layer}/bias"] + constant
            else:  # a merging: the least bias before it that gives the same
                changed[f"{norm}/bias"] = jnp.linalg.lstsq(kernel.T, constant)[0]

    write(stream.begins)
    for block in stream.blocks:
        read(f"{block}/norm1", f"{block}/attention/qkv")
        write(f"{block}/attention/projection", f"{block}/layer_scale1")
        read(f"{block}/norm2", f"{block}/mlp/dense1")
        write(f"{block}/mlp/dense2", f"{block}/layer_scale2")
    norm, layers = stream.ends
    read(norm, *layers)
    return changed
