"""Checkpoint names: one table per source layout, from our parameter paths to the source's tensor names.

A table's key is a regular expression over a module path of ours (its kernel, scale and bias follow) or over a
whole parameter path; its value names the source's module or tensor, several where ours is their concatenation
along the output channels (query, key, value -> qkv). Expected names and shapes follow from the Flax module
alone, so everything missing, misshapen or unexpected in a checkpoint is known before a number is read.
"""

import re
from collections.abc import Mapping

import numpy as np

from psaq_jax.errors import InputError, first

Table = Mapping[str, tuple[str, ...]]

HUGGING_FACE_VIT: Table = {
    r"class_token": ("{prefix}.embeddings.cls_token",),
    r"distillation_token": ("{prefix}.embeddings.distillation_token",),
    r"position_embedding": ("{prefix}.embeddings.position_embeddings",),
    r"patch_embedding": ("{prefix}.embeddings.patch_embeddings.projection",),
    r"block_(\d+)/norm1": (r"{prefix}.encoder.layer.\1.layernorm_before",),
    r"block_(\d+)/attention/qkv": tuple(
        rf"{{prefix}}.encoder.layer.\1.attention.attention.{part}" for part in ("query", "key", "value")
    ),
    r"block_(\d+)/attention/projection": (r"{prefix}.encoder.layer.\1.attention.output.dense",),
    r"block_(\d+)/norm2": (r"{prefix}.encoder.layer.\1.layernorm_after",),
    r"block_(\d+)/mlp/dense1": (r"{prefix}.encoder.layer.\1.intermediate.dense",),
    r"block_(\d+)/mlp/dense2": (r"{prefix}.encoder.layer.\1.output.dense",),
    r"norm": ("{prefix}.layernorm",),
    r"head": ("classifier",),
}
HUGGING_FACE_DEIT_DISTILLED: Table = HUGGING_FACE_VIT | {
    r"head": ("cls_classifier",),
    r"distillation_head": ("distillation_classifier",),
}
HUGGING_FACE_DINOV2: Table = HUGGING_FACE_VIT | {
    r"register_tokens": ("{prefix}.embeddings.register_tokens",),
    r"block_(\d+)/norm1": (r"{prefix}.encoder.layer.\1.norm1",),
    r"block_(\d+)/norm2": (r"{prefix}.encoder.layer.\1.norm2",),
    r"block_(\d+)/layer_scale(1|2)": (r"{prefix}.encoder.layer.\1.layer_scale\2.lambda1",),
    r"block_(\d+)/mlp/dense1": (r"{prefix}.encoder.layer.\1.mlp.fc1",),
    r"block_(\d+)/mlp/dense2": (r"{prefix}.encoder.layer.\1.mlp.fc2",),
}
HUGGING_FACE_DINOV2_SWIGLU: Table = HUGGING_FACE_DINOV2 | {
    r"block_(\d+)/mlp/dense1": (r"{prefix}.encoder.layer.\1.mlp.weights_in",),
    r"block_(\d+)/mlp/dense2": (r"{prefix}.encoder.layer.\1.mlp.weights_out",),
}
TIMM_VIT: Table = {
    r"class_token": ("cls_token",),
    r"distillation_token": ("dist_token",),
    r"position_embedding": ("pos_embed",),
    r"patch_embedding": ("patch_embed.proj",),
    r"block_(\d+)/norm(1|2)": (r"blocks.\1.norm\2",),
    r"block_(\d+)/attention/qkv": (r"blocks.\1.attn.qkv",),
    r"block_(\d+)/attention/projection": (r"blocks.\1.attn.proj",),
    r"block_(\d+)/mlp/dense(1|2)": (r"blocks.\1.mlp.fc\2",),
    r"norm": ("norm",),
    r"head": ("head",),
    r"distillation_head": ("head_dist",),
}
HUGGING_FACE_SWIN: Table = {
    r"patch_embedding": ("{prefix}.embeddings.patch_embeddings.projection",),
    r"patch_embedding_norm": ("{prefix}.embeddings.norm",),
    r"stage_(\d+)/block_(\d+)/norm1": (r"{prefix}.encoder.layers.\1.blocks.\2.layernorm_before",),
    r"stage_(\d+)/block_(\d+)/attention/qkv": tuple(
        rf"{{prefix}}.encoder.layers.\1.blocks.\2.attention.self.{part}" for part in ("query", "key", "value")
    ),
    r"stage_(\d+)/block_(\d+)/attention/relative_position_bias": (
        r"{prefix}.encoder.layers.\1.blocks.\2.attention.self.relative_position_bias_table",
    ),
    r"stage_(\d+)/block_(\d+)/attention/projection": (r"{prefix}.encoder.layers.\1.blocks.\2.attention.output.dense",),
    r"stage_(\d+)/block_(\d+)/norm2": (r"{prefix}.encoder.layers.\1.blocks.\2.layernorm_after",),
    r"stage_(\d+)/block_(\d+)/mlp/dense1": (r"{prefix}.encoder.layers.\1.blocks.\2.intermediate.dense",),
    r"stage_(\d+)/block_(\d+)/mlp/dense2": (r"{prefix}.encoder.layers.\1.blocks.\2.output.dense",),
    r"stage_(\d+)/merging/(norm|reduction)": (r"{prefix}.encoder.layers.\1.downsample.\2",),
    r"norm": ("{prefix}.layernorm",),
    r"head": ("classifier",),
}
ORIGINAL_SWIN: Table = {
    r"patch_embedding": ("patch_embed.proj",),
    r"patch_embedding_norm": ("patch_embed.norm",),
    r"stage_(\d+)/block_(\d+)/norm(1|2)": (r"layers.\1.blocks.\2.norm\3",),
    r"stage_(\d+)/block_(\d+)/attention/qkv": (r"layers.\1.blocks.\2.attn.qkv",),
    r"stage_(\d+)/block_(\d+)/attention/relative_position_bias": (
        r"layers.\1.blocks.\2.attn.relative_position_bias_table",
    ),
    r"stage_(\d+)/block_(\d+)/attention/projection": (r"layers.\1.blocks.\2.attn.proj",),
    r"stage_(\d+)/block_(\d+)/mlp/dense(1|2)": (r"layers.\1.blocks.\2.mlp.fc\3",),
    r"stage_(\d+)/merging/(norm|reduction)": (r"layers.\1.downsample.\2",),
    r"norm": ("norm",),
    r"head": ("head",),
}


def timm_swin(stages: int) -> Table:
    """timm's names since 0.9: a merging is at the head of the next stage, so each has a row of its own."""
    mergings = {rf"stage_{i}/merging/(norm|reduction)": (rf"layers.{i + 1}.downsample.\1",) for i in range(stages - 1)}
    return mergings | ORIGINAL_SWIN | {r"head": ("head.fc",)}


# Buffers and training-only tensors that published checkpoints carry and inference does not read.
IGNORED = re.compile(r".*\.(pooler\..*|mask_token|relative_position_index|attn_mask|relative_coords_table)|mask_token")

LEAVES = {"kernel": ".weight", "scale": ".weight", "bias": ".bias"}


def source_names(path: str, table: Table, prefix: str = "") -> tuple[str, ...]:
    """The source's tensor names for our parameter path, such as "block_0/attention/qkv/kernel"."""
    module, _, leaf = path.rpartition("/")
    whole = leaf not in LEAVES
    for pattern, templates in table.items():
        match = re.fullmatch(pattern, path if whole else module)
        if match:
            names = (match.expand(t.replace("{prefix}", prefix)) for t in templates)
            return tuple(name if whole else name + LEAVES[leaf] for name in names)
    raise KeyError(f"no row of the name table fits {path!r}")


def source_shape(path: str, shape: tuple[int, ...], patch_size: tuple[int, int], parts: int) -> tuple[int, ...]:
    """The shape that each of `parts` source tensors of a parameter must have (torch layout)."""
    leaf = path.rpartition("/")[2]
    if path == "patch_embedding/kernel":
        return (shape[1], shape[0] // (patch_size[0] * patch_size[1]), *patch_size)
    if leaf == "kernel":
        return (shape[1] // parts, shape[0])
    if leaf.endswith(("token", "tokens", "position_embedding")):
        return (1, *shape)
    return (shape[0] // parts, *shape[1:])


def from_source(path: str, shape: tuple[int, ...], tensors: list[np.ndarray]) -> np.ndarray:
    """Source tensors (torch layout) -> our float32 array of `shape`."""
    x = np.concatenate([np.asarray(t, np.float32) for t in tensors])
    if path == "patch_embedding/kernel":
        return np.ascontiguousarray(x.transpose(2, 3, 1, 0).reshape(shape))
    if path.endswith("/kernel"):
        return np.ascontiguousarray(x.T)
    return x.reshape(shape)


def to_source(flat: Mapping[str, np.ndarray], table: Table, patch_size, prefix: str = "") -> dict[str, np.ndarray]:
    """The inverse, for saving: our flat parameters -> {source name: tensor in torch layout}."""
    tensors = {}
    for path, value in flat.items():
        value = np.asarray(value, np.float32)
        names = source_names(path, table, prefix)
        shape = source_shape(path, value.shape, patch_size, len(names))
        if path == "patch_embedding/kernel":
            value = value.reshape(*patch_size, -1, value.shape[-1]).transpose(3, 2, 0, 1)
        elif path.endswith("/kernel"):
            value = value.T
        for name, part in zip(names, np.split(value, len(names)) if len(names) > 1 else [value], strict=True):
            tensors[name] = np.ascontiguousarray(part.reshape(shape))
    return tensors


def shown(name: str) -> str:
    """A tensor's name as one line, whatever characters a damaged file has put into it."""
    return name if name.isprintable() else repr(name)


def check(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], source: str) -> None:
    """Compares {name: shape} of what the model needs with what the checkpoint has.

    Raises:
      InputError: naming the missing, misshapen and unexpected tensors in one line, of each kind the first ones.
    """
    problems = []
    missing = [f"{shown(name)} {list(shape)}" for name, shape in expected.items() if name not in found]
    if missing:
        problems.append(f"missing: {first(missing)}")
    misshapen = [
        f"{shown(name)} is {list(found[name])}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in found and tuple(found[name]) != tuple(shape)
    ]
    if misshapen:
        problems.append(f"wrong shape: {first(misshapen)}")
    # transformers saves the register tokens of a model that has none, as a tensor without numbers.
    others = [name for name, shape in found.items() if name not in expected and 0 not in shape]
    unexpected = sorted(shown(name) for name in others if not IGNORED.fullmatch(name))
    if unexpected:
        problems.append(f"unexpected: {first(unexpected)}")
    if problems:
        raise InputError(
            f"{source}: the tensors do not fit its config.json: {'; '.join(problems)}. "
            "Give the config.json of these weights, or save the checkpoint again by its own library's save_pretrained, "
            "with the names that it gives tensors by default."
        )
