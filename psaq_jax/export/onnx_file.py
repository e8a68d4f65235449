"""`export_onnx`: a float or quantized vision transformer as one ONNX file that ONNX Runtime has run."""

import dataclasses
import json
import pathlib

import jax.numpy as jnp
from flax import traverse_util

from psaq_jax import files
from psaq_jax.errors import InputError
from psaq_jax.export import checking
from psaq_jax.export.description import check_folder, write_description
from psaq_jax.export.onnx_graph import LARGEST_FILE, Graph
from psaq_jax.export.onnx_swin import SwinLayers
from psaq_jax.export.onnx_vit import VitLayers
from psaq_jax.extras import require
from psaq_jax.models.model import Model, check_model
from psaq_jax.models.swin import SwinTransformer
from psaq_jax.models.vit import VisionTransformer
from psaq_jax.quantization.transform import QuantizedModel

FORMAT, FILE = "onnx", "model.onnx"
LAYERS = {VisionTransformer: VitLayers, SwinTransformer: SwinLayers}


def export_onnx(model: Model | QuantizedModel, directory) -> list[pathlib.Path]:
    """Writes model.onnx and export.json (preprocessing, labels, hash, how it was checked).

    The graph takes float32 pixels [batch, height, width, 3], any batch, gives float32 logits [batch, classes], and
    computes in float32 what the model has in bfloat16. A quantized model's kernels are uint8 or, where their codes fit
    4 bits, int4; see `onnx_layers` for how sites are written.

    Returns:
      The files written, export.json last.
    Raises:
      InputError: a family that is not covered, a file beyond protobuf's 2 GB, onnx or onnxruntime not installed, a
        graph that the checker refuses or whose logits are off, an artefact's folder, or no right to write.
    """
    check_model(model, "export_onnx")
    path = check_folder(directory) / FILE
    model = dataclasses.replace(model, module=model.module.clone(dtype=jnp.float32))  # what the graph computes in
    content = onnx_bytes(model, str(path))
    checked = check_onnx(content, model, path)
    written = [files.write_bytes(path, content)]
    return [*written, write_description(directory, model, FORMAT, written, checked)]


def onnx_bytes(model: Model | QuantizedModel, where: str = FILE) -> bytes:
    """The serialized graph, not yet checked."""
    if type(model.module) not in LAYERS:
        known = ", ".join(kind.__name__ for kind in LAYERS)
        raise InputError(f"{where}: ONNX export covers {known}, found {type(model.module).__name__}; use StableHLO")
    sites, graph = model.sites if isinstance(model, QuantizedModel) else {}, Graph()
    params = traverse_util.flatten_dict(model.params, sep="/")
    logits = LAYERS[type(model.module)](graph, params, sites, model.module).model("pixels")
    preprocessing = model.preprocessing
    metadata = {
        "labels": json.dumps(model.labels),
        "preprocessing": json.dumps(dataclasses.asdict(preprocessing)),
        "normalisation": json.dumps({"mean": preprocessing.mean, "std": preprocessing.std}),
    }
    shape = ("batch", *model.image_shape)
    try:
        content = graph.model(shape, logits, ("batch", model.classes), metadata)
    except Exception as error:  # protobuf's own limit, by which of its classes depends on the version
        raise InputError(f"{where}: cannot be serialized ({error}); quantize the model or use StableHLO") from None
    if len(content) > LARGEST_FILE:
        raise InputError(f"{where}: has {len(content)} bytes, protobuf ends at {LARGEST_FILE}; quantize the model")
    return content


def check_onnx(content: bytes, model, path) -> dict:
    """The checker's, shape inference's and ONNX Runtime's consent; see `checking.check` for the rest."""
    onnx, runtime = require("onnx", "onnx"), require("onnxruntime", "onnx")
    try:
        onnx.checker.check_model(content, full_check=True)
        session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
    except Exception as error:  # each library has a family of its own
        raise InputError(f"{path}: the graph is not valid ({error}); not exported") from None
    return checking.check(lambda pixels: session.run(None, {"pixels": pixels})[0], model, path)
