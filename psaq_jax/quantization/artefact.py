"""`save_quantized` and `load_quantized`: a quantized model as a directory that needs nothing beside it.

    model.safetensors         integer weights, scales, quantizers, float biases and LayerNorms: see packing.py
    config.json               the source's own fields, and `quantization_config`: a `Record`
    preprocessor_config.json  the fields of `Preprocessing`
    README.md                 a model card

What comes from the files is not trusted: nothing is imported or opened by a name found in them, and every
size that they declare is compared with what they hold before anything of that size is built.
"""

import dataclasses
import hashlib
import html
import importlib.metadata
import json
import os
import pathlib
import re
import secrets
import shutil
import types
import typing
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import traverse_util

from psaq_jax.errors import InputError
from psaq_jax.models.layers import ACTIVATIONS
from psaq_jax.models.loading import abstract_params, find_checkpoint, read_json, tensor_files
from psaq_jax.models.preprocessing import Preprocessing
from psaq_jax.models.swin import SwinTransformer
from psaq_jax.models.vit import VisionTransformer
from psaq_jax.quantization import packing
from psaq_jax.quantization.packing import Refuse, shown
from psaq_jax.quantization.recipes import DefaultRecipe, site_filter
from psaq_jax.quantization.transform import QuantizedModel
from psaq_jax.sites import apply_with_tap

WEIGHTS, CONFIG, PREPROCESSOR = "model.safetensors", "config.json", "preprocessor_config.json"
CARD = "README.md"
METHOD, VERSION = "psaq_jax", 1
LARGEST_JSON = 2**24  # bytes
LARGEST_SIDE = 2**14  # pixels
FAMILIES = {family.__name__: family for family in (VisionTransformer, SwinTransformer)}
DTYPES = {name: getattr(jnp, name) for name in ("float32", "bfloat16", "float16")}
CHOICES = {  # of the fields that are strings
    "activation": tuple(ACTIVATIONS), "head": ("class_token", "distilled", "class_and_mean_patch"),
    "convention": ("transformers", "timm"), "resize": ("exact", "cover", "none"),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Record:
    """`quantization_config`. What `sites` says of scales repeats the tensors, for people to read."""

    quant_method: str
    format_version: int
    family: str  # a key of FAMILIES
    module: dict  # the fields of the Flax module
    recipe: str
    options: DefaultRecipe | None
    weight_bits: int
    activation_bits: int | None  # None: activations in floating point
    kernels: dict  # {path of a kernel: its bits}
    sites: tuple[dict, ...]  # name, kind (a key of packing.KINDS) and that kind's fields, in running order
    labels: tuple[str, ...]
    source: str
    source_sha256: dict  # {file of weights: hash}; empty where the source was out of reach
    model_bytes: int  # of model.safetensors
    model_sha256: str
    versions: dict


def save_quantized(
    q: QuantizedModel, directory: str | os.PathLike, figures: Mapping[str, Any] | None = None
) -> pathlib.Path:
    """Writes a quantized model, whole or not at all: beside its place, read back, then renamed onto it.

    An earlier artefact in `directory` is replaced; a folder that holds anything else is left as it is.

    Args:
      figures: what the model card shows, such as {"top-1 (%)": 91.2, "agreement with float (%)": 98.7}.
    Returns:
      The directory.
    Raises:
      InputError: no right to write, no space, a folder that holds other files, or a model that
        `load_quantized` would refuse (NaN, a module or quantizer of an unknown kind).
    """
    directory = pathlib.Path(directory)
    target = pathlib.Path(os.path.realpath(directory))
    temporary = target.parent / f".{secrets.token_hex(8)}"
    try:
        _check_replaceable(target)
        temporary.mkdir(parents=True)
        for name, content in _contents(q, figures or {}).items():
            _write(temporary / name, content)
        load_quantized(temporary)
        _move(temporary, target)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{directory}: cannot be written ({reason}); free space or choose another") from None
    except InputError as error:
        raise InputError(str(error).replace(str(temporary), str(directory))) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return directory


def load_quantized(directory: str | os.PathLike) -> QuantizedModel:
    """Reads what `save_quantized` wrote; the logits equal those of the saved model bit for bit.

    Raises:
      InputError: files that are missing, cut off, altered or of another version; names the file and field.
    """
    directory = pathlib.Path(directory)
    weights = directory / WEIGHTS
    of_config, of_weights = _refuse(directory / CONFIG), _refuse(weights)
    record = _read_record(directory / CONFIG, of_config)
    _check_file(weights, record, of_weights)
    module, parameters = _module(record, of_config)
    preprocessing = _read_preprocessing(directory / PREPROCESSOR, module.image_size)
    kinds = _site_kinds(record, of_config)
    tensors = packing.read_tensors(weights, packing.layout(parameters, record.kernels, kinds), of_weights)
    params = packing.to_params(tensors, parameters, record.kernels, of_weights)
    sites = {name: packing.to_quantizer(tensors, name, kind, of_weights) for name, kind in kinds.items()}
    _check_sites(module, parameters, sites, record, of_config)
    for entry in record.sites:
        for field in entry.keys() - {"name", "kind"}:
            if entry[field] != tensors[f"sites/{entry['name']}/{field}"].tolist():
                raise of_config(f"quantization_config.sites: {field} of {entry['name']} is not {WEIGHTS}'s")
    return QuantizedModel(
        params=params, sites=sites, module=module, labels=record.labels, preprocessing=preprocessing,
        source=record.source, weight_bits=record.weight_bits, activation_bits=record.activation_bits,
        recipe=record.recipe, options=record.options,
    )  # fmt: skip


def is_artefact(directory: str | os.PathLike) -> bool:
    """Whether a directory says that `save_quantized` wrote it; `load_quantized` may still refuse it."""
    try:
        config = _read_json(pathlib.Path(directory) / CONFIG)
        return config["quantization_config"]["quant_method"] == METHOD
    except (InputError, OSError, KeyError, TypeError):
        return False


# JSON and dataclasses


def _refuse(path: pathlib.Path) -> Refuse:
    def refuse(problem):
        problem = " ".join(problem.split())[:300]  # a file's own text may be long
        return InputError(f"{path}: {problem}; the artefact is damaged or altered: copy or save it again")

    return refuse


def _read_json(path: pathlib.Path) -> dict:
    hint = "expected what save_quantized wrote"
    if path.exists() and not path.is_file():  # a pipe or device would block or never end
        raise InputError(f"{path}: is not a regular file; {hint}")
    if path.is_file() and path.stat().st_size > LARGEST_JSON:
        raise InputError(f"{path}: has {path.stat().st_size} bytes, expected at most {LARGEST_JSON}; {hint}")
    try:
        return read_json(path, hint)
    except RecursionError:
        raise InputError(f"{path}: is nested too deeply; {hint}") from None


def decoded(kind, value, where: str, refuse: Refuse):
    """A JSON value as what an annotation says: the opposite of `encoded`.

    Args:
      kind: a dataclass (its fields exactly), tuple[...], X | None, jnp.dtype, float, int, bool, str or dict.
      where: the field's name, for errors.
    Raises:
      InputError: anything else, by `refuse`.
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        value, fields = decoded(dict, value, where, refuse), fields_of(kind)
        _check_keys(value, fields, where, refuse)
        return kind(**{n: decoded(fields[n], value[n], f"{where}.{n}", refuse) for n in fields})
    if origin in (types.UnionType, typing.Union):
        return None if value is None else decoded(args[0], value, where, refuse)
    if origin is tuple:
        many = args[-1] is Ellipsis
        if isinstance(value, list) and (many or len(value) == len(args)):
            return tuple(decoded(args[0 if many else i], x, where, refuse) for i, x in enumerate(value))
    elif kind is jnp.dtype:
        if isinstance(value, str) and value in DTYPES:
            return DTYPES[value]
    elif kind is float:
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30:
            return float(value)
    elif type(value) is kind and (kind is not int or 0 <= value < 2**48):
        if kind is not str or value in CHOICES.get(where.rpartition(".")[2], (value,)):
            return value
    raise refuse(f"{where} is {shown(value)}, expected {getattr(kind, '__name__', kind)}")


def _decoded_file(kind, path: pathlib.Path, value, where: str):
    refuse = _refuse(path)
    try:
        return decoded(kind, value, where, refuse)
    except InputError as error:  # a dataclass may check itself, and knows no file
        raise (error if str(error).startswith(str(path)) else refuse(str(error))) from None


def fields_of(kind) -> dict[str, Any]:
    """{name: annotation} of a dataclass, without what Flax adds to modules."""
    added = ("parent", "name") if issubclass(kind, nn.Module) else ()
    return {field.name: field.type for field in dataclasses.fields(kind) if field.name not in added}


def encoded(value) -> dict[str, Any]:
    """The fields of a dataclass as JSON holds them."""
    kinds = fields_of(type(value))
    fields = {name: getattr(value, name) for name in kinds}
    return {name: jnp.dtype(x).name if kinds[name] is jnp.dtype else x for name, x in fields.items()}


def _check_keys(found: Mapping, expected, where: str, refuse: Refuse) -> None:
    for name in sorted(found.keys() ^ set(expected))[:1]:
        raise refuse(f"{where}.{shown(name)} is {'missing' if name in expected else 'not known'}")


# Checking


def _read_record(path: pathlib.Path, refuse: Refuse) -> Record:
    record = _decoded_file(Record, path, _read_json(path).get("quantization_config"), "quantization_config")
    if (record.quant_method, record.format_version) != (METHOD, VERSION):
        found = shown((record.quant_method, record.format_version))
        raise refuse(f"quant_method and format_version are {found}, expected {(METHOD, VERSION)}")
    if record.family not in FAMILIES:
        raise refuse(f"family is {shown(record.family)}, known are {', '.join(FAMILIES)}")
    activation = {} if record.activation_bits is None else {"activation_bits": record.activation_bits}
    for name, bits in (record.kernels | {"weight_bits": record.weight_bits} | activation).items():
        if type(bits) is not int or not 2 <= bits <= 8:
            raise refuse(f"bits of {shown(name)} are {shown(bits)}, expected a whole number from 2 to 8")
    return record


def _check_file(path: pathlib.Path, record: Record, refuse: Refuse) -> None:
    if not path.is_file():
        raise refuse("is not there, or not a regular file")
    size = path.stat().st_size
    if size != record.model_bytes:
        raise refuse(f"has {size} bytes, {CONFIG}'s model_bytes are {record.model_bytes}")
    if _sha256(path) != record.model_sha256:
        raise refuse(f"its SHA-256 is not {CONFIG}'s model_sha256")
    names = packing.stored_names(path, refuse)
    for kernel, bits in record.kernels.items():
        if packing.kernel_tensor(kernel, bits) not in names:
            raise refuse(f"tensor {shown(packing.kernel_tensor(kernel, bits))} is missing")


def _module(record: Record, refuse: Refuse):
    """(module, {path: shape of a parameter}); nothing is allocated, and what is traced is bounded."""
    where = "quantization_config.module"
    module = decoded(FAMILIES[record.family], record.module, where, refuse)
    depths = module.depths if hasattr(module, "depths") else (module.depth,)
    grid = [s // max(p, 1) for s, p in zip(module.image_size, module.patch_size, strict=True)]
    window = getattr(module, "window", (0, 0))
    limits = {  # tracing takes time by block and memory by window; a block has four kernels
        "image_size": (max(module.image_size), LARGEST_SIDE),
        "patches": (grid[0] * grid[1], 2**16),
        "blocks": (sum(depths), min(len(record.kernels) // 4, 64)),
        "stages": (len(depths), 8),
        "window": (max(window), 32),
        "windows": (grid[0] * grid[1] * window[0] * window[1], 2**24),
    }
    for name, value in encoded(module).items():
        values = value if isinstance(value, tuple) else (value,) if isinstance(value, int) else ()
        if name not in limits and values:  # codes of two bits are four a byte
            limits[name] = (max(values), 4 * record.model_bytes)
    for name, (found, limit) in limits.items():
        if found > limit:
            raise refuse(f"{where}: {name} is {found}, expected at most {limit}")
    try:
        parameters = abstract_params(module)
    except Exception as error:  # whatever a module's own code raises on fields that fit no model
        raise refuse(f"{where} describes no model ({shown(str(error))})") from None
    kernels = [path for path in parameters if path.rpartition("/")[2] == "kernel"]
    _check_keys(record.kernels, kernels, "quantization_config.kernels", refuse)
    if len(record.labels) not in (0, module.classes):
        raise refuse(f"quantization_config.labels are {len(record.labels)}, expected {module.classes}")
    return module, parameters


def _read_preprocessing(path: pathlib.Path, image_size: tuple[int, int]) -> Preprocessing:
    refuse, found = _refuse(path), _decoded_file(Preprocessing, path, _read_json(path), "preprocessing")
    sides = (*found.image_size, *found.resize_size)
    if found.image_size != image_size or min(sides) < 1 or max(sides) > LARGEST_SIDE:
        sizes = shown((found.image_size, found.resize_size))
        raise refuse(f"image_size and resize_size are {sizes}, expected {image_size} and 1 to {LARGEST_SIDE}")
    if min(found.std) <= 0 or found.rescale_factor <= 0:
        raise refuse("std or rescale_factor is not positive")
    if found.crop_fraction is not None and not 0.01 <= found.crop_fraction <= 1:
        raise refuse(f"crop_fraction is {found.crop_fraction}, expected a fraction up to 1")
    return found


def _site_kinds(record: Record, refuse: Refuse) -> dict[str, str]:
    """{site: kind of its quantizer}, in the record's order."""
    kinds = {}
    for i, entry in enumerate(record.sites):
        name, kind = entry.get("name"), entry.get("kind")
        where = f"quantization_config.sites[{i}]"
        if not isinstance(name, str) or name in kinds:
            raise refuse(f"{where}.name is {shown(name)}, expected a name of its own")
        if not isinstance(kind, str) or kind not in packing.KINDS:
            raise refuse(f"{where}.kind is {shown(kind)}, known are {', '.join(packing.KINDS)}")
        _check_keys(entry, ["name", "kind", *fields_of(packing.KINDS[kind])], where, refuse)
        kinds[name] = kind
    return kinds


def _check_sites(module, parameters, sites, record: Record, refuse: Refuse) -> None:
    """The sites are those of the recipe, in running order, and no quantizer changes a tensor's shape."""
    running = []

    def tap(name, x):
        running.append(name)
        if name not in sites:
            return x
        try:
            y = sites[name](x)
        except (TypeError, ValueError) as error:
            raise refuse(f"the quantizer of site {name} does not fit ({shown(str(error))})") from None
        if y.shape != x.shape or y.dtype != x.dtype:
            raise refuse(f"the quantizer of site {name} makes {y.shape} of {x.shape}, expected the same")
        return y

    try:
        wanted = site_filter(module, record.recipe)
    except InputError as error:
        raise refuse(str(error)) from None
    params = traverse_util.unflatten_dict(parameters, sep="/")
    pixels = jax.ShapeDtypeStruct((1, *module.image_size, 3), jnp.float32)
    jax.eval_shape(lambda p, x: apply_with_tap(module, p, x, tap), params, pixels)
    expected = [name for name in running if wanted(name)] if record.activation_bits is not None else []
    for found, name in zip([*sites, None], [*expected, None], strict=False):
        if found != name:
            raise refuse(f"quantization_config.sites has {shown(found)} where the model has {shown(name)}")


# Writing


def _check_replaceable(target: pathlib.Path) -> None:
    if target.exists() and not target.is_dir():
        raise InputError(f"{target}: is a file, expected a folder; choose another")
    present = sorted(path.name for path in target.iterdir()) if target.exists() else []
    others = [name for name in present if name not in (WEIGHTS, CONFIG, PREPROCESSOR, CARD)]
    if others or (present and not is_artefact(target)):
        found = (others or present)[0]
        raise InputError(f"{target}: holds {shown(found)}, no part of an artefact; choose another folder")


def _contents(q: QuantizedModel, figures: Mapping[str, Any]) -> dict[str, bytes]:
    """{file name: content} of an artefact."""
    if type(q.module) not in FAMILIES.values():
        found = type(q.module).__name__
        raise InputError(f"module {found} cannot be saved, known are {', '.join(FAMILIES)}")
    for name, quantizer in q.sites.items():
        if type(quantizer) not in packing.KINDS.values():
            found = type(quantizer).__name__
            raise InputError(f"site {name}: {found} cannot be saved, add it to packing.KINDS")
    config, hashes = _read_source(q.source)
    weights = safetensors.numpy.save(packing.to_tensors(q), metadata={"format": packing.FORMAT})
    sites = tuple(
        {"name": name, "kind": type(x).__name__}
        | {field: np.asarray(getattr(x, field), np.float32).tolist() for field in fields_of(type(x))}
        for name, x in q.sites.items()
    )
    record = Record(
        quant_method=METHOD, format_version=VERSION, family=type(q.module).__name__, module=encoded(q.module),
        recipe=q.recipe, options=q.options, weight_bits=q.weight_bits, activation_bits=q.activation_bits,
        kernels=packing.kernel_bits(q), sites=sites, labels=q.labels, source=q.source, source_sha256=hashes,
        model_bytes=len(weights), model_sha256=hashlib.sha256(weights).hexdigest(), versions=_versions(),
    )  # fmt: skip
    options = q.options and encoded(q.options)
    return {
        WEIGHTS: weights,
        CONFIG: _json(config | {"quantization_config": encoded(record) | {"options": options}}),
        PREPROCESSOR: _json(encoded(q.preprocessing)),
        CARD: _card(q, record, figures).encode(),
    }


def _json(value) -> bytes:
    try:
        return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()
    except (TypeError, ValueError) as error:
        raise InputError(f"the model has a field that JSON cannot hold ({error}); quantize again") from None


def _read_source(source: str) -> tuple[dict, dict[str, str]]:
    """(config.json, {file of weights: hash}) of a checkpoint on this machine; empty where it is not."""
    try:
        if source and (source.startswith("bundled:") or pathlib.Path(source).is_dir()):
            directory = find_checkpoint(source)
            config = _read_json(directory / CONFIG)
            standard = json.loads(json.dumps(config), parse_constant=lambda _: None)  # NaN is not JSON
            return standard, {path.name: _sha256(path) for path in tensor_files(directory)}
    except (InputError, OSError):
        pass  # moved or deleted since: the artefact needs nothing of it
    return {}, {}


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _versions() -> dict[str, str]:
    names = {"psaq_jax", "jax", "jaxlib", "flax"}
    return {name: "source" for name in names} | {
        found.name: found.version for found in importlib.metadata.distributions() if found.name in names
    }


def _write(path: pathlib.Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _move(temporary: pathlib.Path, target: pathlib.Path) -> None:
    """Renames a finished directory onto its place; an earlier one steps aside first."""
    earlier = target.parent / f".{secrets.token_hex(8)}"
    if target.exists():
        target.rename(earlier)
    try:
        temporary.rename(target)
    except OSError:
        if earlier.exists():
            earlier.rename(target)
        raise
    shutil.rmtree(earlier, ignore_errors=True)


# The model card

TEMPLATE = """\
---
library_name: psaq_jax
tags: [image-classification, quantization, vision-transformer]
---

# {title}, quantized

{family}, {classes} classes, images of {height}x{width} pixels.
Weights: {weights}. Activations: {activations}. Recipe: {recipe}.

## Source

{source}

{hashes}

## How it was made

Post-training quantization by psaq\\_jax (PSAQ-ViT, Li et al., ECCV 2022), in JAX.
Weights: symmetric, one scale per output channel, every Dense and patch embedding kernel.
Activations: one grid per site, as config.json lists them.
Versions: {versions}.

## Use

    q = psaq_jax.load_quantized(DIRECTORY)
    logits = q(q.preprocess(images))

## Figures

{figures}

## Limits

- Simulated quantization: weights are stored as integers; products run in floating point on rounded numbers.
- Not quantized: {floats}.
- Whatever the source gets wrong, this model gets wrong too: check it on your own images first.
"""


def _card(q: QuantizedModel, record: Record, figures: Mapping[str, Any]) -> str:
    """The model card. Whatever came from a checkpoint or a caller is escaped."""
    kinds = {name.rpartition("/")[2] for name in q.sites}
    floats = ["biases", "the insides of LayerNorm and softmax"]
    floats += ["residual sums"] * ("residual1" not in kinds)
    if "attention_probabilities" not in kinds:
        floats.append("softmax outputs (so attention·value is no integer product)")
    rows = [f"| {_escaped(name)} | {_escaped(value)} |" for name, value in figures.items()]
    bits = sorted(set(record.kernels.values()))
    return TEMPLATE.format(
        title=_escaped(pathlib.PurePath(q.source).name or record.family),
        family=record.family, classes=q.classes, height=q.image_size[0], width=q.image_size[1],
        weights=f"{bits[0]} bits" if len(bits) == 1 else f"{bits[0]} to {bits[-1]} bits",
        activations="floating point" if q.activation_bits is None else f"{q.activation_bits} bits",
        recipe=_escaped(q.recipe), source=_escaped(q.source or "not recorded"),
        hashes="\n".join(f"- {_escaped(n)}: SHA-256 {x}" for n, x in record.source_sha256.items())
        or "The hash of its weights was not recorded: they were not on the machine that saved this.",
        versions=", ".join(f"{_escaped(n)} {_escaped(x)}" for n, x in sorted(record.versions.items())),
        figures="\n".join(["| figure | value |", "|---|---|", *rows]) if rows else "None were recorded.",
        floats=", ".join(floats),
    )  # fmt: skip


def _escaped(value) -> str:
    """Text as one line that Markdown and HTML show as it is."""
    text = "".join(c if c.isprintable() else "?" for c in " ".join(str(value).split()))
    return re.sub(r"([\\`*_{}\[\]()#+.!|~:@$^=-])", r"\\\1", html.escape(text, quote=False))
