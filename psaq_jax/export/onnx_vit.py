"""A vision transformer (ViT, DeiT, DINOv2) as an ONNX graph, quantized (QDQ) or float; see `onnx_layers`."""

import numpy as np

from psaq_jax.export.onnx_layers import Layers


class VitLayers(Layers):
    """Of a `VisionTransformer`. Tokens are [class, distillation or registers, patches]."""

    def model(self, pixels: str) -> str:
        """Pixels [b, height, width, 3] -> logits [b, classes]."""
        add, module = self.graph.add, self.module
        x = self.dense("patch_embedding", self.patchify(self.site("input", pixels), *module.grid))
        x = self.site("patch_embedding_output", x)
        special = ["class_token"] + ["distillation_token"] * module.distillation_token
        x = self.site("tokens", add("Concat", *(self.repeat(name, x) for name in special), x, axis=1))
        positions = self.table("position_embedding_table", self.params["position_embedding"][None])
        x = self.site("embedded", add("Add", x, positions))
        if module.registers:
            first, rest = self.cut(x, 0, 1), self.cut(x, 1)
            x = add("Concat", first, self.repeat("register_tokens", x), rest, axis=1)
        for i in range(module.depth):
            x = self.block(f"block_{i}", x)
        return self.site("logits", self.classify(self.layer_norm("norm", x)))

    def repeat(self, name: str, like: str) -> str:
        """A learned token [k, c] -> [b, k, c]."""
        graph, token = self.graph, np.asarray(self.params[name], np.float32)
        batch = graph.add("Shape", like, start=0, end=1)
        shape = graph.add("Concat", batch, graph.shape(*token.shape), axis=0)
        return graph.add("Expand", graph.constant(name, token[None]), shape)

    def block(self, path: str, x: str) -> str:
        add = self.graph.add
        y = self.site(f"{path}/norm1_output", self.layer_norm(f"{path}/norm1", x))
        y = self.attention(f"{path}/attention", y, self.module.width, self.module.heads)
        x = self.site(f"{path}/residual1", add("Add", x, self.scaled(f"{path}/layer_scale1", y)))
        y = self.site(f"{path}/norm2_output", self.layer_norm(f"{path}/norm2", x))
        y = self.mlp(f"{path}/mlp", y)
        return self.site(f"{path}/residual2", add("Add", x, self.scaled(f"{path}/layer_scale2", y)))

    def attention_logits(self, path: str, query: str, key: str, scale: str) -> str:
        logits = self.graph.add("Mul", self.graph.add("MatMul", query, key), scale)
        return self.site(f"{path}/attention_logits", logits)

    def gate(self, x: str) -> str:
        if not self.module.swiglu:
            return super().gate(x)
        gate, value = self.cut(x, 0, self.module.hidden, 2), self.cut(x, self.module.hidden, axis=2)
        return self.graph.add("Mul", self.activation("silu", gate), value)

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

    def scaled(self, name: str, y: str) -> str:
        if name not in self.params:
            return y
        return self.graph.add("Mul", y, self.graph.constant(name, np.asarray(self.params[name], np.float32)))
