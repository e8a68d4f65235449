"""Single layers as ONNX graphs, against what they are made of; whole models are in `test_onnx.py`."""

import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime as runtime
import pytest

from psaq_jax import InputError
from psaq_jax.export import onnx_file
from psaq_jax.export.onnx_graph import Graph
from psaq_jax.export.onnx_layers import Layers
from psaq_jax.export.stablehlo import named_arrays, restored, stored_arrays
from psaq_jax.models.swin import NORM_EPS
from psaq_jax.quantization.representation import LogQuantizer, QuantizedKernel, UniformQuantizer
from tests.export.small_models import SWIN, random_model

f32 = np.float32


def run(graph: Graph, output: str, x: np.ndarray) -> np.ndarray:
    content = graph.model(x.shape, output, ("rows", "columns"), {})
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return session.run(None, {"pixels": x})[0]


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("zero_point", [0, 1, 3])
def test_a_uniform_site_is_its_grid(bits, zero_point):
    """Also beyond its ends; away from ties, which may fall apart by a code."""
    grid, graph = UniformQuantizer(f32(0.5), f32(zero_point), f32(bits)), Graph()
    x = ((np.arange(-300, 600) + 0.3) * 0.25).astype(f32)[None]
    found = run(graph, Layers(graph, {}, {"a": grid}, None).site("a", "pixels"), x)
    np.testing.assert_array_equal(found, grid(jnp.asarray(x)))
    assert len(np.unique(found)) == 2**bits


@pytest.mark.parametrize("bits, steps, shift", [(2, 1, 0.0), (3, 2, 0.0), (4, 3, 0.17)])
def test_a_logarithmic_site_is_its_grid(bits, steps, shift):
    """The last code is -shift, which is far from the next smaller power where codes are few."""
    grid, graph = LogQuantizer(f32(0.7), f32(steps), f32(bits), f32(shift)), Graph()
    x = np.linspace(-0.5, 1.5, 997, dtype=f32)[None]
    found = run(graph, Layers(graph, {}, {"a": grid}, None).site("a", "pixels"), x)
    # Two libraries' logarithms and powers: some of float32's last bits apart, of numbers below 1.
    np.testing.assert_allclose(found, grid(jnp.asarray(x)), rtol=1e-5, atol=1e-6)
    assert found.min() == -f32(shift) and len(np.unique(found.round(5))) == 2**bits


@pytest.mark.parametrize(
    "least, most, kind", [(-8, 7, "INT4"), (-8, 8, "UINT8"), (-9, 7, "UINT8"), (-128, 127, "UINT8")]
)
def test_kernels_of_any_codes_are_exact(least, most, kind):
    """4 bits hold -8 to 7."""
    codes, graph = np.array([[least, 1], [most, -1]], np.int8), Graph()
    kernel = QuantizedKernel(jnp.asarray(codes), jnp.asarray([0.5, 0.25], jnp.float32))
    output = Layers(graph, {"a/kernel": kernel}, {}, None).dense("a", "pixels")
    np.testing.assert_array_equal(run(graph, output, np.eye(2, dtype=f32)), kernel.dequantize())
    kinds = {x.name: x.data_type for x in graph.initializers}
    assert kinds["a/kernel/codes"] == onnx.TensorProto.DataType.Value(kind)
    tensors = stored_arrays({"a": kernel})  # StableHLO's weights follow the same rule
    assert {x.dtype for name, x in tensors.items() if "scale" not in name} == {
        np.dtype("u1" if kind == "INT4" else "i1")
    }
    np.testing.assert_array_equal(named_arrays(restored({"a": kernel}, tensors))["a/codes"], codes)


def test_swin_s_own_norms_have_an_epsilon_of_their_own():
    """The embedding's and the mergings' is fixed, whatever the config says of the others."""
    module = SWIN.clone(layer_norm_eps=1e-3)
    nodes = onnx.load_from_string(onnx_file.onnx_bytes(random_model(module))).graph.node
    found = {
        node.name: {x.name: x.f for x in node.attribute}["epsilon"]
        for node in nodes
        if node.op_type == "LayerNormalization"
    }
    fixed = {name for name, epsilon in found.items() if epsilon == f32(NORM_EPS)}
    assert fixed == {"patch_embedding_norm", "stage_0/merging/norm"}
    assert {found[name] for name in found.keys() - fixed} == {f32(1e-3)} and len(found) == 2 + 2 * 2 + 1


def test_a_graph_beyond_protobuf_s_limit_is_refused(monkeypatch):
    monkeypatch.setattr(onnx_file, "LARGEST_FILE", 1000)
    with pytest.raises(InputError, match=r"^FILE: has \d+ bytes, protobuf ends at 1000; quantize the model$"):
        onnx_file.onnx_bytes(random_model(), "FILE")
