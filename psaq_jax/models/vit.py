"""The plain vision transformers: ViT, DeiT, distilled DeiT and DINOv2 classifiers, in one Linen module.

Shapes: b batch, n tokens, h heads, d head width, c channels. Tokens are [class, distillation or registers, patches].
Sites of the paper's recipe, in running order: input, patch_embedding_output, tokens, position_embedding_table,
embedded; per block norm1_output, qkv_output, attention_logits, attention_output, projection_output, residual1,
norm2_output, activation_output, dense2_output, residual2; head_input, logits (3 blocks: 37). The families that the
release lacks have the same kinds of sites: a layer scale belongs to the branch that it scales, registers join after
the position embedding, a distilled model has head_input for each of its two heads.
Further sites (query, key, value, attention_probabilities) serve recipes that quantize them apart.
"""

import flax.linen as nn
import jax.numpy as jnp

from psaq_jax.models.layers import Mlp, Product, SwiGlu, fused_attention, heads_apart, layer_norm, patchify, softmax
from psaq_jax.sites import Site


class Attention(nn.Module):
    """Multi-head self-attention: [b, n, c] -> [b, n, c]."""

    heads: int
    qkv_bias: bool
    dtype: jnp.dtype = jnp.float32
    fused: str | None = None

    @nn.compact
    def __call__(self, x):
        b, n, c = x.shape
        head_width = c // self.heads
        query, key, value = heads_apart(x, self.heads, self.qkv_bias, self.dtype)
        if self.fused:
            x = fused_attention(query, key, value, self.fused)
        else:
            logits = Product("bhnd,bhmd->bhnm", name="query_key")(query, key) * head_width**-0.5
            logits = Site(name="attention_logits")(logits)
            probabilities = softmax(logits).astype(self.dtype)
            probabilities = Site(name="attention_probabilities")(probabilities)
            x = Product("bhnm,bhmd->bhnd", name="attention_value")(probabilities, value)
        x = Site(name="attention_output")(x)
        x = x.transpose(0, 2, 1, 3).reshape(b, n, c)
        return Site(name="projection_output")(nn.Dense(c, dtype=self.dtype, name="projection")(x))


class Block(nn.Module):
    """Pre-norm transformer block: [b, n, c] -> [b, n, c]."""

    heads: int
    hidden: int
    qkv_bias: bool
    layer_norm_eps: float
    activation: str
    layer_scale: bool
    swiglu: bool
    dtype: jnp.dtype = jnp.float32
    fused_attention: str | None = None

    @nn.compact
    def __call__(self, x):
        y = Site(name="norm1_output")(layer_norm("norm1", self.layer_norm_eps, self.dtype)(x))
        y = Attention(self.heads, self.qkv_bias, self.dtype, self.fused_attention, name="attention")(y)
        x = Site(name="residual1")(x + self.scaled("layer_scale1", y))
        y = Site(name="norm2_output")(layer_norm("norm2", self.layer_norm_eps, self.dtype)(x))
        if self.swiglu:
            y = SwiGlu(self.hidden, self.dtype, name="mlp")(y)
        else:
            y = Mlp(self.hidden, self.activation, self.dtype, name="mlp")(y)
        return Site(name="residual2")(x + self.scaled("layer_scale2", y))

    def scaled(self, name, y):
        if not self.layer_scale:
            return y
        return y * self.param(name, nn.initializers.ones, (y.shape[-1],)).astype(self.dtype)


class VisionTransformer(nn.Module):
    """Normalised pixels [b, height, width, 3] -> float32 logits [b, classes].

    `head` is "class_token" (ViT, DeiT), "distilled" (two heads, averaged) or "class_and_mean_patch" (DINOv2).
    `fused_attention` names the implementation of `layers.fused_attention`, in the place of the sites in an attention.
    """

    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    width: int
    depth: int
    heads: int
    hidden: int
    classes: int
    qkv_bias: bool = True
    layer_norm_eps: float = 1e-6
    activation: str = "gelu"
    head: str = "class_token"
    distillation_token: bool = False
    registers: int = 0
    layer_scale: bool = False
    swiglu: bool = False
    dtype: jnp.dtype = jnp.float32
    fused_attention: str | None = None

    @property
    def special_tokens(self) -> int:
        """How many tokens before the patches."""
        return 1 + int(self.distillation_token) + self.registers

    @property
    def grid(self) -> tuple[int, int]:
        """Patches per column and per row."""
        return self.image_size[0] // self.patch_size[0], self.image_size[1] // self.patch_size[1]

    @nn.compact
    def __call__(self, pixels):
        c, positions = self.width, 1 + int(self.distillation_token) + self.grid[0] * self.grid[1]
        normal = nn.initializers.normal(0.02)
        x = Site(name="input")(pixels.astype(self.dtype))
        x = nn.Dense(c, dtype=self.dtype, name="patch_embedding")(patchify(x, self.patch_size))
        x = Site(name="patch_embedding_output")(x)
        special = [self.param("class_token", normal, (1, c))]
        if self.distillation_token:
            special.append(self.param("distillation_token", normal, (1, c)))
        x = Site(name="tokens")(jnp.concatenate([*(repeat(t, x) for t in special), x], axis=1))
        position = self.param("position_embedding", normal, (positions, c)).astype(self.dtype)
        x = Site(name="embedded")(x + Site(name="position_embedding_table")(position[None]))
        if self.registers:
            registers = repeat(self.param("register_tokens", normal, (self.registers, c)), x)
            x = jnp.concatenate([x[:, :1], registers, x[:, 1:]], axis=1)
        for i in range(self.depth):
            x = Block(
                self.heads, self.hidden, self.qkv_bias, self.layer_norm_eps, self.activation,
                self.layer_scale, self.swiglu, self.dtype, self.fused_attention, name=f"block_{i}",
            )(x)  # fmt: skip
        x = layer_norm("norm", self.layer_norm_eps, self.dtype)(x)
        return Site(name="logits")(self.classify(x).astype(jnp.float32))

    def classify(self, x):
        if self.head == "distilled":
            y = Site(name="head_input")(x[:, 0])
            z = Site(name="distillation_head_input")(x[:, 1])
            logits = nn.Dense(self.classes, dtype=self.dtype, name="head")(y)
            return (logits + nn.Dense(self.classes, dtype=self.dtype, name="distillation_head")(z)) / 2
        y = x[:, 0]
        if self.head == "class_and_mean_patch":
            y = jnp.concatenate([y, x[:, self.special_tokens :].mean(axis=1)], axis=-1)
        return nn.Dense(self.classes, dtype=self.dtype, name="head")(Site(name="head_input")(y))


def repeat(token, x):
    """A learned token [k, c] -> [b, k, c] in the batch and type of x."""
    return jnp.broadcast_to(token.astype(x.dtype), (x.shape[0], *token.shape))
