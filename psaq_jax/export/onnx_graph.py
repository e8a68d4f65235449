"""A small builder of ONNX graphs: nodes and initializers in order, every name unique.

Operator set 21 is the first with 4-bit integers; ONNX Runtime takes it from 1.20, TensorRT 11 takes sets up to 25.
"""

import collections

import numpy as np

from psaq_jax.extras import require
from psaq_jax.quantization.packing import pack

OPSET, IR_VERSION = 21, 10
MOVES = ("Reshape", "Transpose", "Squeeze", "Unsqueeze")  # which ONNX Runtime moves DequantizeLinear past
LARGEST_FILE = 2**31 - 1  # bytes of a protobuf message


class Graph:
    """Nodes and initializers. Values are known by their names."""

    def __init__(self):
        self.onnx = require("onnx", "onnx")
        self.nodes, self.initializers = [], []
        self._makers = {}  # {output: node}
        self._counts = collections.Counter(["pixels", "logits"])

    def constant(self, name: str, array) -> str:
        """An initializer of the array's own type."""
        name = self._unique(name)
        self.initializers.append(self.onnx.numpy_helper.from_array(np.asarray(array), name))
        return name

    def constant_int4(self, name: str, codes: np.ndarray) -> str:
        """An initializer of signed 4-bit integers, two in a byte."""
        name = self._unique(name)
        packed = pack(codes, 4).tobytes()
        self.initializers.append(
            self.onnx.helper.make_tensor(name, self.onnx.TensorProto.INT4, codes.shape, packed, raw=True)
        )
        return name

    def shape(self, *sides: int) -> str:
        """An initializer for Reshape: 0 keeps the input's side, −1 is what is left."""
        return self.constant("shape", np.array(sides, np.int64))

    def add(self, operator: str, *inputs: str, name: str = "", **attributes) -> str:
        """A node with one output; returns the output's name."""
        output = self._unique(name or operator.lower())
        self._makers[output] = self.onnx.helper.make_node(operator, list(inputs), [output], name=output, **attributes)
        self.nodes.append(self._makers[output])
        return output

    def is_dequantized(self, value: str) -> bool:
        """Whether a value comes from a DequantizeLinear, if by way of operators that only move numbers about."""
        node = self._makers.get(value)
        while node is not None and node.op_type in MOVES:
            node = self._makers.get(node.input[0])
        return node is not None and node.op_type == "DequantizeLinear"

    def model(self, input_shape: tuple, output: str, output_shape: tuple, metadata: dict[str, str]) -> bytes:
        """The serialized model, with the input "pixels" and the output "logits"; strings are symbolic sides."""
        helper, kind = self.onnx.helper, self.onnx.TensorProto.FLOAT
        self.nodes.append(helper.make_node("Identity", [output], ["logits"], name="logits"))
        graph = helper.make_graph(
            self.nodes,
            "psaq_jax",
            [helper.make_tensor_value_info("pixels", kind, input_shape)],
            [helper.make_tensor_value_info("logits", kind, output_shape)],
            self.initializers,
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="psaq_jax",
        )
        helper.set_model_props(model, metadata)
        return model.SerializeToString()

    def _unique(self, name: str) -> str:
        self._counts[name] += 1
        return name if self._counts[name] == 1 else f"{name}.{self._counts[name] - 1}"
