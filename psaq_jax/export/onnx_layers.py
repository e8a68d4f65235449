"""What the ONNX graphs of all families share: kernels, quantized sites, LayerNorm, attention, MLP.

Kernels are integers and a DequantizeLinear per output channel; at every quantized site a QuantizeLinear and a
DequantizeLinear follow each other, by which ONNX Runtime finds what it may run on integers. Kernels of more than 4 bits
are stored as uint8 around 128: ONNX Runtime's products of uint8 and int8 saturate on x86 processors without VNNI, those
of uint8 and uint8 don't. The position table is kept as codes too. Logarithmic grids, which ONNX lacks, are spelled out
in float operators.

Where it differs from psaq_jax: QuantizeLinear rounds x/scale and then adds the zero point, psaq_jax rounds their sum,
so exact ties may fall apart by one code. Below 8 bits a Clip in front keeps codes in their range.

Limits: zero points are the model's own, and TensorRT's integer kernels take zero points of 0 alone.

Shapes: b batch (Swin: windows of all images), n tokens, h heads, d head width, c channels.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from psaq_jax.export.onnx_graph import Graph
from psaq_jax.models.layers import ACTIVATIONS, gelu
from psaq_jax.quantization import quantizers
from psaq_jax.quantization.representation import LogQuantizer, QuantizedKernel, UniformQuantizer

MIDDLE = 128  # of uint8


@dataclasses.dataclass(frozen=True)
class Layers:
    """Writes layers into a graph; a subclass says in which order. Values are known by their names.

    Attributes:
      params: {path: array or `QuantizedKernel`}; sites: {name: quantizer}, empty for a float model.
    """

    graph: Graph
    params: dict
    sites: dict
    module: nn.Module

    def patchify(self, x: str, rows: int, columns: int) -> str:
        """Pixels [b, height, width, 3] -> patches [b, rows·columns, ph·pw·3]; what is beyond the grid is cut off."""
        graph, (ph, pw) = self.graph, self.module.patch_size
        if rows * ph < self.module.image_size[0] or columns * pw < self.module.image_size[1]:
            for axis, side in ((1, rows * ph), (2, columns * pw)):
                x = self.cut(x, 0, side, axis)
        x = graph.add("Reshape", x, graph.shape(0, rows, ph, columns, pw, 3))
        x = graph.add("Transpose", x, perm=[0, 1, 3, 2, 4, 5])
        return graph.add("Reshape", x, graph.shape(0, rows * columns, ph * pw * 3))

    def table(self, name: str, table) -> str:
        """A learned table that is a site of its own: its values, or codes where the site is quantized."""
        table, grid = np.asarray(table, np.float32), self.sites.get(name)
        if grid is None:
            return self.graph.constant(name, table)
        codes = quantizers.quantize_activations(jnp.asarray(table), grid.scale, grid.zero_point, grid.bits)
        codes = self.graph.constant(f"{name}/codes", np.asarray(codes, np.uint8))
        return self.graph.add("DequantizeLinear", codes, *self.scale_and_zero(name, grid), name=name)

    def attention(self, path: str, x: str, channels: int, heads: int) -> str:
        """[b, n, c] -> [b, n, c]."""
        graph, add = self.graph, self.graph.add
        qkv = self.site(f"{path}/qkv_output", self.dense(f"{path}/qkv", x))
        qkv = add("Reshape", qkv, graph.shape(0, 0, 3, heads, channels // heads))
        parts = {}
        for i, name in enumerate(("query", "key", "value")):
            part = add("Gather", qkv, graph.constant("index", np.int64(i)), axis=2)
            parts[name] = self.site(f"{path}/{name}", add("Transpose", part, perm=[0, 2, 1, 3]))
        scale = graph.constant(f"{path}/scale", np.float32((channels // heads) ** -0.5))
        key = add("Transpose", parts["key"], perm=[0, 1, 3, 2])
        x = add("Softmax", self.attention_logits(path, parts["query"], key, scale), axis=-1)
        x = add("MatMul", self.site(f"{path}/attention_probabilities", x), parts["value"])
        x = add("Transpose", self.site(f"{path}/attention_output", x), perm=[0, 2, 1, 3])
        x = self.dense(f"{path}/projection", add("Reshape", x, graph.shape(0, 0, channels)))
        return self.site(f"{path}/projection_output", x)

    def attention_logits(self, path: str, query: str, key: str, scale: str) -> str:
        """Queries [b, h, n, d] and keys [b, h, d, n] -> what softmax takes, [b, h, n, n]."""
        raise NotImplementedError

    def mlp(self, path: str, x: str) -> str:
        x = self.gate(self.dense(f"{path}/dense1", x))
        if (scale := self.params.get(f"{path}/activation_scale")) is not None:
            x = self.graph.add("Mul", x, self.graph.constant(f"{path}/activation_scale", np.asarray(scale, np.float32)))
        x = self.site(f"{path}/activation_output", x)
        return self.site(f"{path}/dense2_output", self.dense(f"{path}/dense2", x))

    def gate(self, x: str) -> str:
        return self.activation(self.module.activation, x)

    def activation(self, kind: str, x: str) -> str:
        if kind == "relu":
            return self.graph.add("Relu", x)
        if kind in ("silu", "swish", "quick_gelu"):
            factor = self.graph.constant("factor", np.float32(1.702 if kind == "quick_gelu" else 1))
            return self.graph.add("Mul", x, self.graph.add("Sigmoid", self.graph.add("Mul", x, factor)))
        return self.graph.add("Gelu", x, approximate="none" if ACTIVATIONS[kind] is gelu else "tanh")

    def cut(self, x: str, start: int, end: int = 2**31 - 1, axis: int = 1) -> str:
        numbers = (self.graph.constant("slice", np.array([n], np.int64)) for n in (start, end, axis))
        return self.graph.add("Slice", x, *numbers)

    def layer_norm(self, path: str, x: str, epsilon: float | None = None) -> str:
        names = (f"{path}/scale", f"{path}/bias")
        factors = (self.graph.constant(name, np.asarray(self.params[name], np.float32)) for name in names)
        epsilon = epsilon or self.module.layer_norm_eps
        return self.graph.add("LayerNormalization", x, *factors, axis=-1, epsilon=epsilon, name=path)

    def dense(self, path: str, x: str) -> str:
        kernel = self.kernel(f"{path}/kernel", self.graph.is_dequantized(x))
        y = self.graph.add("MatMul", x, kernel, name=f"{path}/product")
        bias = self.params.get(f"{path}/bias")
        if bias is None:
            return y
        return self.graph.add("Add", y, self.graph.constant(f"{path}/bias", np.asarray(bias, np.float32)), name=path)

    def kernel(self, path: str, beside_codes: bool) -> str:
        """[i, o] float32: an initializer, or codes of 4 bits, or of 8 around 128, times a scale per output channel.

        `beside_codes`: whether the product's other factor is dequantized. Where it is not, the same is written without
        DequantizeLinear: ONNX Runtime would make a MatMulNBits of that, which rounds the other factor to 8 bits itself.
        """
        kernel, graph = self.params[path], self.graph
        if not isinstance(kernel, QuantizedKernel):
            return graph.constant(path, np.asarray(kernel, np.float32))
        codes, scale = np.asarray(kernel.codes), np.asarray(kernel.scale, np.float32)
        inputs = [graph.constant(f"{path}/scale", scale)]
        if -8 <= codes.min() and codes.max() <= 7:
            stored = graph.constant_int4(f"{path}/codes", codes)
        else:
            stored = graph.constant(f"{path}/codes", (codes.astype(np.int16) + MIDDLE).astype(np.uint8))
            inputs.append(graph.constant(f"{path}/zero_point", np.full(scale.shape, MIDDLE, np.uint8)))
        if beside_codes:
            return graph.add("DequantizeLinear", stored, *inputs, name=path, axis=1)
        numbers = [graph.add("Cast", x, to=graph.onnx.TensorProto.FLOAT) for x in (stored, *inputs[1:])]
        whole = graph.add("Sub", *numbers) if inputs[1:] else numbers[0]
        return graph.add("Mul", whole, inputs[0], name=path)

    def site(self, name: str, x: str) -> str:
        """x rounded to the grid of a site, or as it is where the site isn't quantized."""
        grid = self.sites.get(name)
        if isinstance(grid, LogQuantizer):
            return self.logarithmic(name, grid, x)
        if not isinstance(grid, UniformQuantizer):
            return x
        levels = 2.0 ** float(grid.bits) - 1
        if levels < 255:
            ends = (np.float32((end - float(grid.zero_point)) * float(grid.scale)) for end in (0.0, levels))
            x = self.graph.add("Clip", x, *(self.graph.constant(f"{name}/end", end) for end in ends))
        scale, zero = self.scale_and_zero(name, grid)
        codes = self.graph.add("QuantizeLinear", x, scale, zero, name=f"{name}/quantized")
        return self.graph.add("DequantizeLinear", codes, scale, zero, name=name)

    def scale_and_zero(self, name: str, grid: UniformQuantizer) -> tuple[str, str]:
        scale = self.graph.constant(f"{name}/step", np.float32(grid.scale))
        return scale, self.graph.constant(f"{name}/zero_point", np.uint8(grid.zero_point))

    def logarithmic(self, name: str, grid: LogQuantizer, x: str) -> str:
        """`LogQuantizer` in float operators: scale·2^(−q/steps) − shift, −shift for the last code."""
        add, number = self.graph.add, lambda n: self.graph.constant(f"{name}/number", np.float32(n))
        last = 2.0 ** float(grid.bits) - 1
        ratio = add("Max", add("Div", add("Add", x, number(grid.shift)), number(grid.scale)), number(1e-30))
        codes = add("Mul", add("Log", ratio), number(-float(grid.steps) / np.log(2)))
        codes = add("Clip", add("Round", codes), number(0), number(last))
        power = add("Pow", number(2), add("Mul", codes, number(-1 / float(grid.steps))))
        value = add("Mul", power, number(grid.scale))
        value = add("Where", add("Equal", codes, number(last)), number(0), value)
        return add("Sub", value, number(grid.shift), name=name)
