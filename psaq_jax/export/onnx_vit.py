"""A vision transformer as an ONNX graph, quantized (QDQ) or float.

Kernels are integers and a DequantizeLinear per output channel; at every quantized site a QuantizeLinear and a
DequantizeLinear follow each other, by which ONNX Runtime finds what it may run on integers. The position table is kept
as codes too. Logarithmic grids, which ONNX lacks, are spelled out in float operators.

Where it differs from psaq_jax: QuantizeLinear rounds x/scale and then adds the zero point, psaq_jax rounds their sum,
so exact ties may fall apart by one code. Below 8 bits a Clip in front keeps codes in their range.

Limits: zero points are the model's own, and TensorRT's integer kernels take zero points of 0 alone. On x86 processors
without VNNI, ONNX Runtime's uint8 times int8 saturates; its session option session.x64quantprecision=1 prevents that.

Shapes: b batch, n tokens, h heads, d head width, c channels.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from psaq_jax.export.onnx_graph import Graph
from psaq_jax.models.vit import VisionTransformer
from psaq_jax.quantization import quantizers
from psaq_jax.quantization.representation import LogQuantizer, QuantizedKernel, UniformQuantizer


def vit_graph(module: VisionTransformer, params: dict, sites: dict) -> tuple[Graph, str]:
    """(the graph, the name of its logits) of pixels [b, height, width, 3]; `sites` is empty for a float model."""
    graph = Graph()
    writer = _Writer(graph, traverse_util.flatten_dict(params, sep="/"), sites, module)
    return graph, writer.model("pixels")


@dataclasses.dataclass(frozen=True)
class _Writer:
    graph: Graph
    params: dict
    sites: dict
    module: VisionTransformer

    def model(self, pixels: str) -> str:
        add, module = self.graph.add, self.module
        x = self.dense("patch_embedding", self.patchify(self.site("input", pixels)))
        x = self.site("patch_embedding_output", x)
        special = ["class_token"] + ["distillation_token"] * module.distillation_token
        x = self.site("tokens", add("Concat", *(self.repeat(name, x) for name in special), x, axis=1))
        x = self.site("embedded", add("Add", x, self.positions()))
        if module.registers:
            first, rest = self.cut(x, 0, 1), self.cut(x, 1)
            x = add("Concat", first, self.repeat("register_tokens", x), rest, axis=1)
        for i in range(module.depth):
            x = self.block(f"block_{i}", x)
        return self.site("logits", self.classify(self.layer_norm("norm", x)))

    def patchify(self, x: str) -> str:
        graph, (ph, pw), (rows, columns) = self.graph, self.module.patch_size, self.module.grid
        if (rows * ph, columns * pw) != tuple(self.module.image_size):
            for axis, side in ((1, rows * ph), (2, columns * pw)):
                x = self.cut(x, 0, side, axis)
        x = graph.add("Reshape", x, graph.shape(0, rows, ph, columns, pw, 3))
        x = graph.add("Transpose", x, perm=[0, 1, 3, 2, 4, 5])
        return graph.add("Reshape", x, graph.shape(0, rows * columns, ph * pw * 3))

    def repeat(self, name: str, like: str) -> str:
        """A learned token [k, c] -> [b, k, c]."""
        graph, token = self.graph, np.asarray(self.params[name], np.float32)
        batch = graph.add("Shape", like, start=0, end=1)
        shape = graph.add("Concat", batch, graph.shape(*token.shape), axis=0)
        return graph.add("Expand", graph.constant(name, token[None]), shape)

    def positions(self) -> str:
        name, table = "position_embedding_table", np.asarray(self.params["position_embedding"], np.float32)[None]
        grid = self.sites.get(name)
        if grid is None:
            return self.graph.constant(name, table)
        codes = quantizers.quantize_activations(jnp.asarray(table), grid.scale, grid.zero_point, grid.bits)
        codes = self.graph.constant(f"{name}/codes", np.asarray(codes, np.uint8))
        return self.graph.add("DequantizeLinear", codes, *self.scale_and_zero(name, grid), name=name)

    def block(self, path: str, x: str) -> str:
        add = self.graph.add
        y = self.site(f"{path}/norm1_output", self.layer_norm(f"{path}/norm1", x))
        y = self.attention(f"{path}/attention", y)
        x = self.site(f"{path}/residual1", add("Add", x, self.scaled(f"{path}/layer_scale1", y)))
        y = self.site(f"{path}/norm2_output", self.layer_norm(f"{path}/norm2", x))
        y = self.mlp(f"{path}/mlp", y)
        return self.site(f"{path}/residual2", add("Add", x, self.scaled(f"{path}/layer_scale2", y)))

    def attention(self, path: str, x: str) -> str:
        graph, add, c, h = self.graph, self.graph.add, self.module.width, self.module.heads
        qkv = self.site(f"{path}/qkv_output", self.dense(f"{path}/qkv", x))
        qkv = add("Reshape", qkv, graph.shape(0, 0, 3, h, c // h))
        parts = {}
        for i, name in enumerate(("query", "key", "value")):
            part = add("Gather", qkv, graph.constant("index", np.int64(i)), axis=2)
            parts[name] = self.site(f"{path}/{name}", add("Transpose", part, perm=[0, 2, 1, 3]))
        product = add("MatMul", parts["query"], add("Transpose", parts["key"], perm=[0, 1, 3, 2]))
        logits = add("Mul", product, graph.constant(f"{path}/scale", np.float32((c // h) ** -0.5)))
        x = add("Softmax", self.site(f"{path}/attention_logits", logits), axis=-1)
        x = add("MatMul", self.site(f"{path}/attention_probabilities", x), parts["value"])
        x = add("Transpose", self.site(f"{path}/attention_output", x), perm=[0, 2, 1, 3])
        x = self.dense(f"{path}/projection", add("Reshape", x, graph.shape(0, 0, c)))
        return self.site(f"{path}/projection_output", x)

    def mlp(self, path: str, x: str) -> str:
        x = self.dense(f"{path}/dense1", x)
        if self.module.swiglu:
            gate, value = self.cut(x, 0, self.module.hidden, 2), self.cut(x, self.module.hidden, axis=2)
            x = self.graph.add("Mul", self.activation("silu", gate), value)
        else:
            x = self.activation(self.module.activation, x)
        x = self.dense(f"{path}/dense2", self.site(f"{path}/activation_output", x))
        return self.site(f"{path}/dense2_output", x)

    def activation(self, kind: str, x: str) -> str:
        if kind == "relu":
            return self.graph.add("Relu", x)
        if kind in ("silu", "swish", "quick_gelu"):
            factor = self.graph.constant("factor", np.float32(1.702 if kind == "quick_gelu" else 1))
            return self.graph.add("Mul", x, self.graph.add("Sigmoid", self.graph.add("Mul", x, factor)))
        return self.graph.add("Gelu", x, approximate="none" if kind == "gelu" else "tanh")

    def classify(self, x: str) -> str:
        graph = self.graph
        first = self.token(x, 0)
        if self.module.head == "distilled":
            heads = {"head": ("head_input", first), "distillation_head": ("distillation_head_input", self.token(x, 1))}
            logits = [self.dense(head, self.site(*tensor)) for head, tensor in heads.items()]
            return graph.add("Mul", graph.add("Add", *logits), graph.constant("half", np.float32(0.5)))
        if self.module.head == "class_and_mean_patch":
            patches = self.cut(x, self.module.special_tokens)
            mean = graph.add("ReduceMean", patches, graph.constant("axis", np.array([1], np.int64)), keepdims=0)
            first = graph.add("Concat", first, mean, axis=-1)
        return self.dense("head", self.site("head_input", first))

    def token(self, x: str, index: int) -> str:
        return self.graph.add("Gather", x, self.graph.constant("index", np.int64(index)), axis=1)

    def cut(self, x: str, start: int, end: int = 2**31 - 1, axis: int = 1) -> str:
        numbers = (self.graph.constant("slice", np.array([n], np.int64)) for n in (start, end, axis))
        return self.graph.add("Slice", x, *numbers)

    def scaled(self, name: str, y: str) -> str:
        if name not in self.params:
            return y
        return self.graph.add("Mul", y, self.graph.constant(name, np.asarray(self.params[name], np.float32)))

    def layer_norm(self, path: str, x: str) -> str:
        names = (f"{path}/scale", f"{path}/bias")
        factors = (self.graph.constant(name, np.asarray(self.params[name], np.float32)) for name in names)
        return self.graph.add("LayerNormalization", x, *factors, axis=-1, epsilon=self.module.layer_norm_eps, name=path)

    def dense(self, path: str, x: str) -> str:
        y = self.graph.add("MatMul", x, self.kernel(f"{path}/kernel"), name=f"{path}/product")
        bias = self.params.get(f"{path}/bias")
        if bias is None:
            return y
        return self.graph.add("Add", y, self.graph.constant(f"{path}/bias", np.asarray(bias, np.float32)), name=path)

    def kernel(self, path: str) -> str:
        """[i, o] float32: an initializer, or codes of 4 or 8 bits dequantized per output channel."""
        kernel, graph = self.params[path], self.graph
        if not isinstance(kernel, QuantizedKernel):
            return graph.constant(path, np.asarray(kernel, np.float32))
        codes = np.asarray(kernel.codes)
        small = -8 <= codes.min() and codes.max() <= 7
        stored = (graph.constant_int4 if small else graph.constant)(f"{path}/codes", codes)
        scale = graph.constant(f"{path}/scale", np.asarray(kernel.scale, np.float32))
        return graph.add("DequantizeLinear", stored, scale, name=path, axis=1)

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
        """`LogQuantizer` in float operators: scale·2^(−q/steps), 0 for the last code."""
        add, number = self.graph.add, lambda n: self.graph.constant(f"{name}/number", np.float32(n))
        last = 2.0 ** float(grid.bits) - 1
        ratio = add("Max", add("Div", x, number(grid.scale)), number(1e-30))
        codes = add("Mul", add("Log", ratio), number(-float(grid.steps) / np.log(2)))
        codes = add("Clip", add("Round", codes), number(0), number(last))
        power = add("Pow", number(2), add("Mul", codes, number(-1 / float(grid.steps))))
        value = add("Mul", power, number(grid.scale))
        return add("Where", add("Equal", codes, number(last)), number(0), value, name=name)
