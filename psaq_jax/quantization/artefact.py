"""`save_quantized` and `load_quantized`: a quantized model as a directory that needs nothing beside it.

    model.safetensors         integer weights, scales, quantizers, float biases and LayerNorms: see packing.py
    config.json               the source's own fields, and `quantization_config`: a `Record`
    preprocessor_config.json  the fields of `Preprocessing`
    README.md                 a model card

What comes from the files is not trusted: nothing is imported or opened by a name found in them, and every
size that they declare is compared with what they hold before anything of that size is built.
"""

import os
import pathlib
import secrets
import shutil
from collections.abc import Mapping
from typing import Any

from psaq_jax import files, resumption
from psaq_jax.checks import check_choice, check_folder_path
from psaq_jax.errors import InputError, Unreadable, reading
from psaq_jax.models.sources import CONFIG, PREPROCESSOR, WEIGHTS
from psaq_jax.quantization import consistency, packing
from psaq_jax.quantization.contents import contents
from psaq_jax.quantization.packing import shown
from psaq_jax.quantization.provenance import Provenance
from psaq_jax.quantization.record import (
    CARD,
    METHOD,
    check_file,
    check_hash,
    read_artefact_json,
    read_module,
    read_record,
    refuse_for,
)
from psaq_jax.quantization.transform import QuantizedModel

EXECUTIONS = ("simulated", "integer")


def save_quantized(
    q: QuantizedModel, directory: str | os.PathLike, figures: Mapping[str, Any] | None = None
) -> pathlib.Path:
    """Writes a quantized model, whole or not at all: beside its place, read back, then renamed onto it.

    An earlier artefact in `directory` is replaced; a folder that holds anything else is left as it is. Folders cannot
    be exchanged in one step: a kill between the two renames leaves both beside the place, as .unfinished-....

    Args:
      figures: what the model card shows, such as {"top-1 (%)": 91.2, "agreement with float (%)": 98.7}.
    Returns:
      The directory.
    Raises:
      InputError: no right to write, no space, a folder that holds other files, or a model that
        `load_quantized` would refuse (NaN, a module or quantizer of an unknown kind).
    """
    if not isinstance(q, QuantizedModel):
        raise InputError(f"save_quantized takes a quantized model, found {type(q).__name__}; quantize makes one")
    if not isinstance(figures, Mapping | None):
        expected = 'a dictionary such as {"top-1 (%)": 91.2}'
        raise InputError(f"figures are {type(figures).__name__}, expected {expected}")
    directory = check_folder_path("the artefact's directory", directory)
    target = pathlib.Path(os.path.realpath(directory))
    temporary = target.parent / f"{files.UNFINISHED}{secrets.token_hex(8)}"
    try:
        _check_replaceable(target)
        files.write_in_turn(temporary, contents(q, figures or {}))
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


def load_quantized(directory: str | os.PathLike, execution: str = "simulated") -> QuantizedModel:
    """Reads what `save_quantized` wrote.

    Args:
      execution: "simulated": the logits equal those of the saved model bit for bit. "integer": an `IntegerModel`,
        whose matrix products run on integers where they can, and all else in float32.
    Raises:
      InputError: files that are missing, unreadable, cut off, altered or of another version, naming the file and
        field; another execution.
    """
    check_choice("execution", execution, EXECUTIONS)
    with reading(directory):
        q = _load(check_folder_path("the artefact's directory", directory))
    if execution == "simulated":
        return q
    from psaq_jax.quantization.integer import integer_model  # most who load an artefact need nothing of it

    return integer_model(q)


def _load(directory: pathlib.Path) -> QuantizedModel:
    weights = directory / WEIGHTS
    of_config, of_weights = refuse_for(directory / CONFIG), refuse_for(weights)
    config = read_artefact_json(directory / CONFIG)
    record = read_record(directory / CONFIG, config, of_config)
    names = check_file(weights, record, of_weights)
    module, parameters = read_module(record, of_config)
    if not getattr(module, "swiglu", False):
        parameters |= packing.activation_scales(parameters, names)
    weight_bits = consistency.weight_bits_of(record, parameters, of_config)
    preprocessor = read_artefact_json(directory / PREPROCESSOR)
    preprocessing = consistency.preprocessing_of(directory / PREPROCESSOR, preprocessor, module.image_size)
    kinds = consistency.site_kinds(record, of_config)
    tensors = packing.read_tensors(weights, packing.layout(parameters, record.kernels, kinds), of_weights)
    params = packing.to_params(tensors, parameters, record.kernels, of_weights)
    sites = {name: packing.to_quantizer(tensors, name, kind, of_weights) for name, kind in kinds.items()}
    consistency.check_sites(module, parameters, sites, record, of_config)
    consistency.check_bits(sites, record, of_weights)
    consistency.check_scales(record, tensors, of_config)
    check_hash(config, preprocessor, of_config)
    return QuantizedModel(
        params=params, sites=sites, module=module, labels=record.labels, preprocessing=preprocessing,
        source=record.source, weight_bits=weight_bits, activation_bits=record.activation_bits,
        recipe=record.recipe, kernel_bits=tuple(record.kernels.items()), options=record.options,
        provenance=Provenance({n: x for n, x in config.items() if n != "quantization_config"}, record.source_sha256),
        distillations=record.distillations,
    )  # fmt: skip


def is_artefact(directory: str | os.PathLike) -> bool:
    """Whether a directory says that `save_quantized` wrote it; `load_quantized` may still refuse it."""
    try:
        config = read_artefact_json(pathlib.Path(os.path.expanduser(directory)) / CONFIG)
        return config["quantization_config"]["quant_method"] == METHOD
    except (InputError, OSError, KeyError, TypeError):
        return False


def load_quantized_if_whole(directory: str | os.PathLike) -> QuantizedModel | None:
    """What `load_quantized` gives of a model that the caller can make again; None where it is missing or damaged.

    Raises:
      TryAgain: it cannot be read now, and may well be whole.
    """
    try:
        return load_quantized(directory)
    except Unreadable as error:
        raise resumption.unreadable(error.path, error.reason) from None
    except InputError:
        return None


def _check_replaceable(target: pathlib.Path) -> None:
    if target.exists() and not target.is_dir():
        raise InputError(f"{target}: is a file, expected a folder; choose another")
    if target == pathlib.Path(os.path.realpath(os.curdir)):  # which would be renamed away under this process
        raise InputError(f"{target}: is the folder that this process works in; choose another, such as one in it")
    present = sorted(path.name for path in target.iterdir()) if target.exists() else []
    others = [name for name in present if name not in (WEIGHTS, CONFIG, PREPROCESSOR, CARD)]
    if others or (present and not is_artefact(target)):
        found = (others or present)[0]
        raise InputError(f"{target}: holds {shown(found)}, no part of an artefact; choose another folder")


def _move(temporary: pathlib.Path, target: pathlib.Path) -> None:
    """Renames a finished directory onto its place; an earlier one steps aside first."""
    earlier = target.parent / f"{files.UNFINISHED}{secrets.token_hex(8)}"
    if target.exists():
        target.rename(earlier)
    try:
        temporary.rename(target)
    except OSError:
        if earlier.exists():
            earlier.rename(target)
        raise
    shutil.rmtree(earlier, ignore_errors=True)
