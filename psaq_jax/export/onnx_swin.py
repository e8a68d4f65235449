"""A Swin transformer as an ONNX graph, quantized (QDQ) or float; see `onnx_layers` and `models.swin`.

Maps are [b, rows, columns, c]; their sizes are known when the graph is written, the batch is not.
"""

import dataclasses

import numpy as np

from psaq_jax.export.onnx_layers import Layers
from psaq_jax.models.swin import (
    MASKED,
    NORM_EPS,
    relative_position_index,
    shift_regions,
    window_and_shift,
)


class SwinLayers(Layers):
    """Of a `SwinTransformer`."""

    def model(self, pixels: str) -> str:
        """Pixels [b, height, width, 3] -> logits [b, classes]."""
        add, module = self.graph.add, self.module
        x, size = self.site("input", pixels), module.image_size
        if module.convention == "transformers":
            x, size = self.pad(x, size, module.patch_size)
        size = tuple(side // p for side, p in zip(size, module.patch_size, strict=True))
        x = self.site("patch_embedding_output", self.dense("patch_embedding", self.patchify(x, *size)))
        x = self.layer_norm("patch_embedding_norm", x, NORM_EPS)
        x = self.site("patch_embedding_norm_output", x)
        x = add("Reshape", x, self.graph.shape(0, *size, module.widths[0]))
        for i in range(len(module.depths)):
            x, size = self.stage(i, x, size)
        x = self.site("norm_output", self.layer_norm("norm", x))
        x = add("ReduceMean", x, self.graph.constant("axes", np.array([1, 2], np.int64)), keepdims=0)
        return self.site("logits", self.dense("head", self.site("head_input", x)))

    def stage(self, i: int, x: str, size: tuple[int, int]) -> tuple[str, tuple[int, int]]:
        module = self.module
        for j in range(module.depths[i]):
            window, shift = window_and_shift(module.map_size(i), module.window, j % 2 == 1, module.convention)
            x = self.block(f"stage_{i}/block_{j}", x, i, size, window, shift)
        return self.merge(f"stage_{i}/merging", x, size, module.widths[i]) if i + 1 < len(module.depths) else (x, size)

    def block(self, path: str, x: str, stage: int, size, window, shift) -> str:
        y = self.site(f"{path}/norm1_output", self.layer_norm(f"{path}/norm1", x))
        x = self.graph.add("Add", x, self.attend(f"{path}/attention", y, stage, size, window, shift))
        x = self.site(f"{path}/residual1", x)
        y = self.site(f"{path}/norm2_output", self.layer_norm(f"{path}/norm2", x))
        return self.site(f"{path}/residual2", self.graph.add("Add", x, self.mlp(f"{path}/mlp", y)))

    def attend(self, path: str, x: str, stage: int, size, window, shift) -> str:
        """Roll and pad (in the convention's order), attend within windows, and undo both."""
        channels, heads = self.module.widths[stage], self.module.heads[stage]
        padded, timm = size, self.module.convention == "timm"
        if not timm:
            x, padded = self.pad(x, size, window)
        x, padded = self.pad(self.roll(x, padded, [-s for s in shift]), padded, window)
        attention = _WindowLayers(self.graph, self.params, self.sites, self.module, padded, window, shift)
        x = attention.attention(path, self.partition(x, padded, window, channels), channels, heads)
        x = self.unpartition(x, padded, window, channels)
        rolled = size if timm else padded
        x = self.roll(self.crop(x, padded, rolled), rolled, shift)
        return self.crop(x, rolled, size)

    def merge(self, path: str, x: str, size, channels: int) -> tuple[str, tuple[int, int]]:
        """2×2 patches, column by column, become one of twice the channels."""
        add, graph = self.graph.add, self.graph
        x, (rows, columns) = self.pad(x, size, (2, 2))
        x = add("Reshape", x, graph.shape(0, rows // 2, 2, columns // 2, 2, channels))
        x = add("Transpose", x, perm=[0, 1, 3, 4, 2, 5])
        x = add("Reshape", x, graph.shape(0, rows // 2, columns // 2, 4 * channels))
        x = self.site(f"{path}/norm_output", self.layer_norm(f"{path}/norm", x, NORM_EPS))
        return self.site(f"{path}/reduction_output", self.dense(f"{path}/reduction", x)), (rows // 2, columns // 2)

    def pad(self, x: str, size, multiple) -> tuple[str, tuple[int, int]]:
        """Zeros below and on the right up to whole multiples: (the map, its size)."""
        below, right = (-side % m for side, m in zip(size, multiple, strict=True))
        if not below and not right:
            return x, tuple(size)
        ends = self.graph.constant("pads", np.array([0, 0, 0, 0, 0, below, right, 0], np.int64))
        return self.graph.add("Pad", x, ends), (size[0] + below, size[1] + right)

    def crop(self, x: str, size, wanted) -> str:
        for axis in (0, 1):
            if wanted[axis] < size[axis]:
                x = self.cut(x, 0, wanted[axis], axis + 1)
        return x

    def roll(self, x: str, size, shift) -> str:
        """As jnp.roll over rows and columns."""
        for axis in (0, 1):
            start = -shift[axis] % size[axis]
            if start:
                parts = self.cut(x, start, axis=axis + 1), self.cut(x, 0, start, axis + 1)
                x = self.graph.add("Concat", *parts, axis=axis + 1)
        return x

    def partition(self, x: str, size, window, channels: int) -> str:
        """A map -> windows [b·w, n, c], those of an image beside each other."""
        add, graph, (rows, columns) = self.graph.add, self.graph, window
        x = add("Reshape", x, graph.shape(0, size[0] // rows, rows, size[1] // columns, columns, channels))
        x = add("Transpose", x, perm=[0, 1, 3, 2, 4, 5])
        return add("Reshape", x, graph.shape(-1, rows * columns, channels))

    def unpartition(self, x: str, size, window, channels: int) -> str:
        add, graph, (rows, columns) = self.graph.add, self.graph, window
        x = add("Reshape", x, graph.shape(-1, size[0] // rows, size[1] // columns, rows, columns, channels))
        x = add("Transpose", x, perm=[0, 1, 3, 2, 4, 5])
        return add("Reshape", x, graph.shape(-1, *size, channels))


@dataclasses.dataclass(frozen=True)
class _WindowLayers(Layers):
    """Attention within the windows of a map of one size, rolled by one shift."""

    size: tuple[int, int]
    window: tuple[int, int]
    shift: tuple[int, int]

    def attention_logits(self, path: str, query: str, key: str, scale: str) -> str:
        add, graph = self.graph.add, self.graph
        logits = add("MatMul", add("Mul", query, scale), key)
        logits = add("Add", self.site(f"{path}/attention_logits", logits), self.bias(path))
        logits = self.site(f"{path}/attention_logits_biased", logits)
        if not any(self.shift):
            return logits
        regions = shift_regions(self.size, self.window, self.shift)
        mask = np.where(regions[:, :, None] == regions[:, None, :], 0, MASKED).astype(np.float32)[:, None]
        heads, n = self.params[f"{path}/relative_position_bias"].shape[1], regions.shape[1]
        logits = add("Reshape", logits, graph.shape(-1, len(mask), heads, n, n))
        logits = add("Add", logits, graph.constant(f"{path}/mask", mask))
        return add("Reshape", logits, graph.shape(-1, heads, n, n))

    def bias(self, path: str) -> str:
        """[h, n, n], gathered from the learned table."""
        table = self.table(f"{path}/relative_position_table", self.params[f"{path}/relative_position_bias"])
        index = self.graph.constant("index", relative_position_index(self.window).astype(np.int64))
        return self.graph.add("Transpose", self.graph.add("Gather", table, index, axis=0), perm=[2, 0, 1])
