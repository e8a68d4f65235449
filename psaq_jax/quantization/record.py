"""`quantization_config`, the record of a saved quantized model: what it holds, how JSON says it, what is checked.

Nothing is imported or opened by a name found in a file, and every size that a file declares is compared with what it
holds before anything of that size is built.
"""

import dataclasses
import pathlib
import types
import typing
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from psaq_jax import checksums, files
from psaq_jax.distillation.config import DistillationConfig
from psaq_jax.errors import InputError
from psaq_jax.models.architecture import check_geometry
from psaq_jax.models.fields import DEEPEST, MOST_STAGES
from psaq_jax.models.layers import ACTIVATIONS
from psaq_jax.models.loading import abstract_params
from psaq_jax.models.preprocessing_configs import BEYOND, LARGEST_SIDE, is_number
from psaq_jax.models.sources import CONFIG, PREPROCESSOR
from psaq_jax.models.swin import SwinTransformer
from psaq_jax.models.vit import VisionTransformer
from psaq_jax.quantization import packing
from psaq_jax.quantization.packing import Refuse, shown
from psaq_jax.quantization.recipes import ADDED, DefaultRecipe

CARD = "README.md"
METHOD, VERSION = "psaq_jax", 1
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
    distillations: tuple[DistillationConfig, ...]  # records that are older have none
    weight_bits: int | None  # None: mixed precision, `kernels` says which
    activation_bits: int | None  # None: activations in floating point
    kernels: dict  # {path of a kernel: its bits}
    sites: tuple[dict, ...]  # name, kind (a key of packing.KINDS) and that kind's fields, in running order
    labels: tuple[str, ...]
    source: str
    source_sha256: dict[str, str]  # {file of weights: hash}; empty where the source was out of reach
    model_bytes: int  # of model.safetensors
    model_sha256: str
    versions: dict[str, str]


HASH = "sha256"  # in `quantization_config`: of the rest of config.json and of the preprocessing


def hash_of(config: Mapping, preprocessing: Mapping) -> str:
    """SHA-256 of config.json without its hash and of preprocessor_config.json."""
    return checksums.of_json([config | {"quantization_config": _without_hash(config)}, preprocessing])


def check_hash(config: Mapping, preprocessing: Mapping, refuse: Refuse) -> None:
    """Earlier artefacts have a hash of `quantization_config` and the preprocessing alone, or none."""
    if HASH not in config["quantization_config"]:
        return
    try:
        hashes = hash_of(config, preprocessing), checksums.of_json([_without_hash(config), preprocessing])
    except RecursionError:  # what a decoder just takes, the encoder may not
        raise refuse("is nested too deeply") from None
    if config["quantization_config"][HASH] not in hashes:
        raise refuse(f"quantization_config.{HASH} is not that of the rest of {CONFIG} and of {PREPROCESSOR}")


def _without_hash(config: Mapping) -> dict:
    return {name: value for name, value in config["quantization_config"].items() if name != HASH}


def refuse_for(path: pathlib.Path) -> Refuse:
    def refuse(problem):
        problem = " ".join(problem.split())[:300]  # a file's own text may be long
        return InputError(f"{path}: {problem}; the artefact is damaged or altered: copy or save it again")

    return refuse


def read_artefact_json(path: pathlib.Path) -> dict:
    return files.read_json(path, "expected what save_quantized wrote")


def decoded(kind, value, where: str, refuse: Refuse):
    """A JSON value as what an annotation says: the opposite of `encoded`.

    Args:
      kind: a dataclass (its fields exactly), tuple[...], dict[str, ...], X | None, jnp.dtype, float, int, bool, str or
        dict.
      where: the field's name, for errors.
    Raises:
      InputError: anything else, by `refuse`.
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    known = CHOICES.get(where.rpartition(".")[2]) if kind is str else None
    if dataclasses.is_dataclass(kind):
        value, fields = decoded(dict, value, where, refuse), fields_of(kind)
        check_keys(value, fields, where, refuse)
        return kind(**{n: decoded(fields[n], value[n], f"{where}.{n}", refuse) for n in fields})
    if origin in (types.UnionType, typing.Union):
        return None if value is None else decoded(args[0], value, where, refuse)
    if origin is dict:
        return {n: decoded(args[1], x, f"{where}.{n}", refuse) for n, x in decoded(dict, value, where, refuse).items()}
    if origin is tuple:
        many = args[-1] is Ellipsis
        if isinstance(value, list) and (many or len(value) == len(args)):
            return tuple(decoded(args[0 if many else i], x, where, refuse) for i, x in enumerate(value))
    elif kind is jnp.dtype:
        if isinstance(value, str) and value in DTYPES:
            return DTYPES[value]
    elif kind is float:
        if is_number(value):
            return float(value)
    elif type(value) is kind and (kind is not int or 0 <= value < 2**48):
        if not known or value in known:
            return value
    expected = {
        float: f"a finite number below {BEYOND:g}", int: "a whole number of at least 0", bool: "true or false",
        str: f"one of {', '.join(known)}" if known else "text", dict: "an object",
        jnp.dtype: f"one of {', '.join(DTYPES)}",
    }.get(kind, "a list" if Ellipsis in args else f"{len(args)} entries")  # fmt: skip
    raise refuse(f"{where} is {shown(value)}, expected {expected}")


def decoded_file(kind, path: pathlib.Path, value, where: str):
    refuse = refuse_for(path)
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


def check_keys(found: Mapping, expected, where: str, refuse: Refuse) -> None:
    for name in sorted(found.keys() ^ set(expected))[:1]:
        raise refuse(f"{where}.{shown(name)} is {'missing' if name in expected else 'not known'}")


def read_record(path: pathlib.Path, config: Mapping, refuse: Refuse) -> Record:
    """The record in the content of config.json, whose path is for errors."""
    found = config.get("quantization_config")
    if found is None:
        raise InputError(f"{path}: has no quantization_config, so this is no quantized model; load_model reads others")
    if isinstance(found, dict):
        method, version = found.get("quant_method"), found.get("format_version")
        if method != METHOD:
            raise InputError(f"{path}: quant_method is {shown(method)}, expected {METHOD!r}; what wrote it reads it")
        if version != VERSION:
            saved = "read it with the psaq_jax that saved it, or save it again"
            raise InputError(f"{path}: format_version is {shown(version)}, expected {VERSION}; {saved}")
        found = {"distillations": []} | {name: value for name, value in found.items() if name != HASH}
        if isinstance(found.get("options"), dict):
            found |= {"options": ADDED | found["options"]}
    record = decoded_file(Record, path, found, "quantization_config")
    if record.family not in FAMILIES:
        raise refuse(f"family is {shown(record.family)}, known are {', '.join(FAMILIES)}")
    named = {name: bits for name in ("weight_bits", "activation_bits") if (bits := getattr(record, name)) is not None}
    for name, bits in (record.kernels | named).items():
        if type(bits) is not int or not 2 <= bits <= 8:
            raise refuse(f"bits of {shown(name)} are {shown(bits)}, expected a whole number from 2 to 8")
    return record


def check_file(path: pathlib.Path, record: Record, refuse: Refuse) -> set[str]:
    """The names of the tensors in model.safetensors, once it is the file that the record means."""
    if not path.is_file():
        raise refuse("is not there, or not a regular file")
    size = path.stat().st_size
    if size != record.model_bytes:
        raise refuse(f"has {size} bytes, {CONFIG}'s model_bytes are {record.model_bytes}")
    if checksums.of_file(path) != record.model_sha256:
        raise refuse(f"its SHA-256 is not {CONFIG}'s model_sha256")
    names = packing.stored_names(path, refuse)
    for kernel, bits in record.kernels.items():
        if packing.kernel_tensor(kernel, bits) not in names:
            raise refuse(f"tensor {shown(packing.kernel_tensor(kernel, bits))} is missing")
    return names


def read_module(record: Record, refuse: Refuse):
    """(module, {path: shape of a parameter}); nothing is allocated, and what is traced is bounded."""
    where = "quantization_config.module"
    module = decoded(FAMILIES[record.family], record.module, where, refuse)
    depths = module.depths if hasattr(module, "depths") else (module.depth,)
    grid = [s // max(p, 1) for s, p in zip(module.image_size, module.patch_size, strict=True)]
    window = tuple(map(min, grid, getattr(module, "window", (0, 0))))  # no larger than the map
    # Tracing takes time by block and memory by window. What `load_model` takes is within; a block has four kernels.
    limits = {
        "image_size": (max(module.image_size), LARGEST_SIDE),
        "patches": (grid[0] * grid[1], 2**20),
        "blocks": (sum(depths), min(len(record.kernels) // 4, DEEPEST)),
        "stages": (len(depths), MOST_STAGES),
        "windows": (grid[0] * grid[1] * window[0] * window[1], 2**26),
    }
    for name, value in encoded(module).items():
        values = value if isinstance(value, tuple) else (value,) if isinstance(value, int) else ()
        if name not in limits and values:  # codes of two bits are four a byte
            limits[name] = (max(values), 4 * record.model_bytes)
    for name, (found, limit) in limits.items():
        if found > limit:
            raise refuse(f"{where}: {name} is {found}, expected at most {limit}")
    if not 0 < module.layer_norm_eps <= 1:
        raise refuse(f"{where}.layer_norm_eps is {module.layer_norm_eps}, expected a positive number up to 1")
    try:
        check_geometry(module, where)
        parameters = abstract_params(module)
    except InputError as error:
        raise refuse(str(error)) from None
    except Exception as error:  # whatever a module's own code raises on fields that fit no model
        raise refuse(f"{where} describes no model ({shown(str(error))})") from None
    kernels = [path for path in parameters if path.rpartition("/")[2] == "kernel"]
    check_keys(record.kernels, kernels, "quantization_config.kernels", refuse)
    if len(record.labels) not in (0, module.classes):
        raise refuse(f"quantization_config.labels are {len(record.labels)}, expected {module.classes}")
    return module, parameters
