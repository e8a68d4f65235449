"""Swin transformers: attention within windows of a map, which every second block shifts by half a window.

Shapes: b batch, w windows of an image, n tokens of a window, h heads, d head width, c channels.
Sites of the paper's recipe, in running order: input, patch_embedding_output, patch_embedding_norm_output; per
block norm1_output, qkv_output, attention_logits (the query scaled first), relative_position_table,
attention_logits_biased (before the mask), attention_output, projection_output, residual1, norm2_output,
activation_output, dense2_output, residual2; per merging norm_output, reduction_output; norm_output,
head_input (the mean token), logits (2+2 blocks: 56). Attention tensors are [b·w, h, n, …], the windows of an
image beside each other; what the projection takes and gives is a map again.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from psaq_jax.models.layers import Mlp, Product, heads_apart, layer_norm, patchify, softmax
from psaq_jax.sites import Site

MASKED = -100.0  # added to the logits of tokens that only the roll has brought together
NORM_EPS = 1e-5  # of the embedding's and the mergings' LayerNorm, whatever the config says of the others


def window_and_shift(size, window, odd: bool, convention: str):
    """((height, width) of the windows of a map, (rows, columns) that the block's map is rolled by).

    A map no larger than the window is one window and is not shifted; "timm" decides this for each side alone,
    "transformers" (and the original release) takes the shorter side for both.
    """
    if convention == "timm":
        window = tuple(map(min, size, window))
        return window, tuple(w // 2 if odd and s > w else 0 for s, w in zip(size, window, strict=True))
    if min(size) <= min(window):
        return (min(size),) * 2, (0, 0)
    return tuple(window), tuple(w // 2 if odd else 0 for w in window)


def partition(x, window):
    """A map [b, rows, columns, c] -> windows [b·w, n, c], those of an image beside each other, row-major."""
    b, rows, columns, c = x.shape
    x = x.reshape(b, rows // window[0], window[0], columns // window[1], window[1], c)
    return x.swapaxes(2, 3).reshape(-1, window[0] * window[1], c)


def unpartition(x, window, size):
    """The inverse of `partition`, for a map of (rows, columns) = `size`."""
    rows, columns = size
    x = x.reshape(-1, rows // window[0], columns // window[1], *window, x.shape[-1])
    return x.swapaxes(2, 3).reshape(-1, rows, columns, x.shape[-1])


def relative_position_index(window) -> np.ndarray:
    """[n, n] rows of the table: (dr + height − 1)·(2·width − 1) + dc + width − 1 for query minus key."""
    rows, columns = (axis.reshape(-1) for axis in np.indices(window))
    dr, dc = rows[:, None] - rows, columns[:, None] - columns
    return (dr + window[0] - 1) * (2 * window[1] - 1) + dc + window[1] - 1


def shift_regions(size, window, shift) -> np.ndarray:
    """[w, n] int32: tokens of a rolled map attend to each other where these numbers are equal."""

    def regions(length, w, s):
        position = np.arange(length)
        return (position >= length - w).astype(np.int32) + (position >= length - s) if s else 0 * position

    rows, columns = (regions(*axis) for axis in zip(size, window, shift, strict=True))
    return partition((3 * rows[:, None] + columns)[None, ..., None], window)[..., 0].astype(np.int32)


def pad_to(x, multiple):
    """Zeros below and on the right, up to whole multiples of (rows, columns)."""
    below, right = (-x.shape[1] % multiple[0], -x.shape[2] % multiple[1])
    return jnp.pad(x, ((0, 0), (0, below), (0, right), (0, 0))) if below or right else x


class WindowAttention(nn.Module):
    """Multi-head self-attention within windows: [b·w, n, c] -> what `restore` makes of [b·w, n, c].

    `regions` ([w, n], or None where nothing was rolled) tells which tokens see each other. `restore` takes windows
    back to a map; the projection comes after it, so that no statistic of its counts a token that only pads the map.
    """

    window: tuple[int, int]
    heads: int
    qkv_bias: bool
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, regions, restore):
        batch, n, c = x.shape
        head_width = c // self.heads
        query, key, value = heads_apart(x, self.heads, self.qkv_bias, self.dtype)
        logits = Product("bhnd,bhmd->bhnm", head_width**-0.5, name="query_key")(query, key)
        logits = Site(name="attention_logits")(logits) + self.bias()
        logits = Site(name="attention_logits_biased")(logits).astype(jnp.float32)
        if regions is not None:
            regions = jnp.asarray(regions)
            mask = jnp.where(regions[:, :, None] == regions[:, None, :], 0.0, MASKED)[:, None]
            logits = (logits.reshape(-1, len(mask), self.heads, n, n) + mask).reshape(logits.shape)
        probabilities = Site(name="attention_probabilities")(softmax(logits).astype(self.dtype))
        x = Product("bhnm,bhmd->bhnd", name="attention_value")(probabilities, value)
        x = Site(name="attention_output")(x)
        x = restore(x.transpose(0, 2, 1, 3).reshape(batch, n, c))
        return Site(name="projection_output")(nn.Dense(c, dtype=self.dtype, name="projection")(x))

    def bias(self):
        """[h, n, n], gathered from the learned table [(2·height − 1)·(2·width − 1), h]."""
        shape = ((2 * self.window[0] - 1) * (2 * self.window[1] - 1), self.heads)
        table = self.param("relative_position_bias", nn.initializers.normal(0.02), shape)
        table = Site(name="relative_position_table")(table.astype(self.dtype))
        return table[relative_position_index(self.window)].transpose(2, 0, 1)


class SwinBlock(nn.Module):
    """Pre-norm block on a feature map: [b, rows, columns, c] -> the same."""

    window: tuple[int, int]
    shift: tuple[int, int]
    convention: str
    heads: int
    hidden: int
    qkv_bias: bool
    layer_norm_eps: float
    activation: str
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        y = Site(name="norm1_output")(layer_norm("norm1", self.layer_norm_eps, self.dtype)(x))
        x = Site(name="residual1")(x + self.attend(y))
        y = Site(name="norm2_output")(layer_norm("norm2", self.layer_norm_eps, self.dtype)(x))
        y = Mlp(self.hidden, self.activation, self.dtype, name="mlp")(y)
        return Site(name="residual2")(x + y)

    def attend(self, x):
        """Roll and pad (in the convention's order), attend within windows, and undo both."""
        attention = WindowAttention(self.window, self.heads, self.qkv_bias, self.dtype, name="attention")
        rows, columns = x.shape[1:3]
        shifted = any(self.shift)
        if self.convention != "timm":
            x = pad_to(x, self.window)
        if shifted:
            x = jnp.roll(x, [-s for s in self.shift], axis=(1, 2))
        x = pad_to(x, self.window)
        size = x.shape[1:3]
        regions = shift_regions(size, self.window, self.shift) if shifted else None

        def restore(x):
            x = unpartition(x, self.window, size)
            if self.convention == "timm":
                x = x[:, :rows, :columns]
            if shifted:
                x = jnp.roll(x, self.shift, axis=(1, 2))
            return x[:, :rows, :columns]

        return attention(partition(x, self.window), regions, restore)


class PatchMerging(nn.Module):
    """2×2 patches become one of twice the channels: [b, rows, columns, c] -> [b, rows/2, columns/2, 2c]."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        b, _, _, c = x.shape
        x = pad_to(x, (2, 2))
        rows, columns = x.shape[1] // 2, x.shape[2] // 2
        # Column by column: (0,0), (1,0), (0,1), (1,1).
        x = x.reshape(b, rows, 2, columns, 2, c).transpose(0, 1, 3, 4, 2, 5).reshape(b, rows, columns, 4 * c)
        x = Site(name="norm_output")(layer_norm("norm", NORM_EPS, self.dtype)(x))
        return Site(name="reduction_output")(nn.Dense(2 * c, use_bias=False, dtype=self.dtype, name="reduction")(x))


class Stage(nn.Module):
    """Blocks at one resolution, then, except in the last stage, patch merging."""

    size: tuple[int, int]  # of the map that decides how large the windows are
    window: tuple[int, int]
    depth: int
    merge: bool
    block: dict  # further fields of SwinBlock
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        convention = self.block["convention"]
        for i in range(self.depth):
            window, shift = window_and_shift(self.size, self.window, i % 2 == 1, convention)
            x = SwinBlock(window, shift, **self.block, dtype=self.dtype, name=f"block_{i}")(x)
        return PatchMerging(self.dtype, name="merging")(x) if self.merge else x


class SwinTransformer(nn.Module):
    """Normalised pixels [b, height, width, 3] -> float32 logits [b, classes].

    `widths`, `depths`, `heads` and `hidden` have one number a stage. `convention` is "transformers" or
    "timm": what happens where patches, windows or mergings don't fit the map. "transformers" pads the image
    to whole patches, pads the map and then rolls it; "timm" cuts the remainder of the image off, rolls the
    map and then pads it. The original release, which refuses such images, equals both on square maps. (timm before
    1.0.31 sized windows by maps rounded down.)
    """

    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    hidden: tuple[int, ...]
    window: tuple[int, int]
    classes: int
    qkv_bias: bool = True
    layer_norm_eps: float = 1e-5
    activation: str = "gelu"
    convention: str = "transformers"
    dtype: jnp.dtype = jnp.float32

    special_tokens = 0
    synthesis_learning_rate = 0.25  # the paper's for Swin

    def map_size(self, stage: int) -> tuple[int, int]:
        """(rows, columns) of the map of a stage."""
        cut = self.convention == "timm"
        patches = (i // p if cut else -(-i // p) for i, p in zip(self.image_size, self.patch_size, strict=True))
        return tuple(-(-n // 2**stage) for n in patches)

    def window_size(self, stage: int) -> tuple[int, int]:
        """(rows, columns) of the windows of a stage."""
        return window_and_shift(self.map_size(stage), self.window, False, self.convention)[0]

    def pads(self, stage: int) -> bool:
        """Whether tokens of zeros fill up the windows of a stage."""
        return any(side % w for side, w in zip(self.map_size(stage), self.window_size(stage), strict=True))

    @nn.compact
    def __call__(self, pixels):
        x = Site(name="input")(pixels.astype(self.dtype))
        if self.convention == "transformers":
            x = pad_to(x, self.patch_size)
        grid = tuple(side // p for side, p in zip(x.shape[1:3], self.patch_size, strict=True))
        x = nn.Dense(self.widths[0], dtype=self.dtype, name="patch_embedding")(patchify(x, self.patch_size))
        x = Site(name="patch_embedding_output")(x)
        x = layer_norm("patch_embedding_norm", NORM_EPS, self.dtype)(x)
        x = Site(name="patch_embedding_norm_output")(x).reshape(-1, *grid, self.widths[0])
        for i, depth in enumerate(self.depths):
            block = {
                "convention": self.convention, "heads": self.heads[i], "hidden": self.hidden[i],
                "qkv_bias": self.qkv_bias, "layer_norm_eps": self.layer_norm_eps,
                "activation": self.activation,
            }  # fmt: skip
            merge = i + 1 < len(self.depths)
            x = Stage(self.map_size(i), self.window, depth, merge, block, self.dtype, name=f"stage_{i}")(x)
        x = Site(name="norm_output")(layer_norm("norm", self.layer_norm_eps, self.dtype)(x))
        x = Site(name="head_input")(x.mean(axis=(1, 2)))
        return Site(name="logits")(nn.Dense(self.classes, dtype=self.dtype, name="head")(x).astype(jnp.float32))
