"""What the files of an artefact hold: see `artefact` for which they are."""

import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy

from psaq_jax import checksums, files
from psaq_jax.checks import fits
from psaq_jax.errors import InputError
from psaq_jax.machine import versions
from psaq_jax.models.sources import CONFIG, PREPROCESSOR, WEIGHTS, find_checkpoint
from psaq_jax.models.tensors import file_stamps, tensor_files
from psaq_jax.quantization import packing
from psaq_jax.quantization.card import model_card
from psaq_jax.quantization.provenance import Provenance
from psaq_jax.quantization.record import (
    CARD,
    FAMILIES,
    HASH,
    METHOD,
    VERSION,
    Record,
    encoded,
    fields_of,
    hash_of,
    read_artefact_json,
)
from psaq_jax.quantization.transform import QuantizedModel


def contents(q: QuantizedModel, figures: Mapping[str, Any]) -> dict[str, bytes]:
    """{file name: content} of an artefact.

    Raises:
      InputError: a module or quantizer of an unknown kind, labels that are no texts or of other classes, or a field
        that JSON cannot hold.
    """
    if type(q.module) not in FAMILIES.values():
        found = type(q.module).__name__
        raise InputError(f"module {found} cannot be saved, known are {', '.join(FAMILIES)}")
    for name, quantizer in q.sites.items():
        if type(quantizer) not in packing.KINDS.values():
            found = type(quantizer).__name__
            raise InputError(f"site {name}: {found} cannot be saved, add it to packing.KINDS")
    if not fits(q.labels, tuple[str, ...]) or len(q.labels) not in (0, q.module.classes):
        found = f"the model's labels are {str(q.labels)[:80]}"
        raise InputError(f"{found}, expected {q.module.classes} texts, one a class, or (); give it such labels")
    known = _read_source(q.source, q.provenance.stamps) if q.provenance.config is None else q.provenance
    weights = safetensors.numpy.save(packing.to_tensors(q), metadata={"format": packing.FORMAT})
    sites = tuple(
        {"name": name, "kind": type(x).__name__}
        | {field: np.asarray(getattr(x, field), np.float32).tolist() for field in fields_of(type(x))}
        for name, x in q.sites.items()
    )
    record = Record(
        quant_method=METHOD, format_version=VERSION, family=type(q.module).__name__, module=encoded(q.module),
        recipe=q.recipe, options=q.options, distillations=q.distillations,
        weight_bits=q.weight_bits if isinstance(q.weight_bits, int) else None,
        activation_bits=q.activation_bits, kernels=dict(q.kernel_bits), sites=sites, labels=q.labels,
        source=q.source, source_sha256=dict(known.sha256), model_bytes=len(weights),
        model_sha256=hashlib.sha256(weights).hexdigest(), versions=versions("jax", "jaxlib", "flax"),
    )  # fmt: skip
    nested = {"options": q.options and encoded(q.options), "distillations": [encoded(x) for x in q.distillations]}
    fields, preprocessing = encoded(record) | nested, encoded(q.preprocessing)
    config = _without_nan(known.config) | {"quantization_config": fields}
    _json([config, preprocessing])  # names what JSON cannot hold, which the hash would trip over
    hashed = fields | {HASH: hash_of(config, preprocessing)}
    return {
        WEIGHTS: weights,
        CONFIG: _json(config | {"quantization_config": hashed}),
        PREPROCESSOR: _json(preprocessing),
        CARD: files.encoded(model_card(q, record, figures)),
    }


def _json(value) -> bytes:
    try:
        content = (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"the model has a field that JSON cannot hold ({error}); quantize again") from None
    if len(content) > files.LARGEST_JSON:
        expected = f"expected at most {files.LARGEST_JSON}"
        raise InputError(f"{CONFIG} would have {len(content)} bytes, {expected}; shorten labels or its source's")
    return content


def _without_nan(config: Mapping) -> dict:
    """The same as JSON knows it, which has no NaN."""
    try:
        return json.loads(json.dumps(config), parse_constant=lambda _: None)
    except RecursionError:
        raise InputError(f"the source's {CONFIG} is nested too deeply to be kept; remove what nests there") from None


def _read_source(source: str, stamps: tuple) -> Provenance:
    """What is known of a checkpoint on this machine; nothing where it is not, or where its weights are others now."""
    try:
        if source and (source.startswith("bundled:") or pathlib.Path(source).is_dir()):
            directory = find_checkpoint(source)
            config = read_artefact_json(directory / CONFIG)
            if file_stamps(directory) != stamps:
                return Provenance({})
            return Provenance(config, {path.name: checksums.of_file(path) for path in tensor_files(directory)})
    except (InputError, OSError):
        pass  # moved or deleted since: the artefact needs nothing of it
    return Provenance({})
