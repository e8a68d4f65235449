"""What the files of a saved quantized model must say of one another: its record, tensors and preprocessor.

All functions raise the InputError that `refuse` makes, naming the file and field.
"""

import pathlib
from collections.abc import Mapping

from flax import traverse_util

from psaq_jax.errors import InputError
from psaq_jax.models.preprocessing import Preprocessing
from psaq_jax.models.preprocessing_configs import LARGEST_SIDE, LEAST_FRACTION, LEAST_STD
from psaq_jax.models.sources import WEIGHTS
from psaq_jax.quantization import packing
from psaq_jax.quantization.packing import Refuse, shown
from psaq_jax.quantization.recipes import LOGARITHMIC, site_filter
from psaq_jax.quantization.record import Record, check_keys, decoded_file, fields_of, refuse_for
from psaq_jax.quantization.representation import LogQuantizer, average_bits
from psaq_jax.quantization.transform import bits_by_layer
from psaq_jax.sites import site_names


def weight_bits_of(record: Record, parameters: Mapping, refuse: Refuse) -> int | float:
    """The model's bits, or its kernels' average; the kernels' own must be what they say."""
    if record.weight_bits is None:
        return average_bits(record.kernels, {path: parameters[path].size for path in record.kernels})
    for layer, bits in bits_by_layer(parameters, record.weight_bits, record.options).items():
        found = record.kernels[f"{layer}/kernel"]
        if found != bits:
            raise refuse(f"quantization_config.kernels: {layer}/kernel has {found} bits, weight_bits mean {bits}")
    return record.weight_bits


def check_bits(sites: Mapping, record: Record, refuse: Refuse) -> None:
    for name, quantizer in sites.items():
        wanted = record.activation_bits if record.options is None else record.options.bits(name, record.activation_bits)
        if quantizer.bits != wanted:
            raise refuse(f"tensor 'sites/{name}/bits' holds {quantizer.bits}, expected {wanted} by activation_bits")


def preprocessing_of(path: pathlib.Path, fields: Mapping, image_size: tuple[int, int]) -> Preprocessing:
    refuse, found = refuse_for(path), decoded_file(Preprocessing, path, fields, "preprocessing")
    sides = (*found.image_size, *found.resize_size)
    if found.image_size != image_size or min(sides) < 1:
        sizes = shown((found.image_size, found.resize_size))
        raise refuse(f"image_size and resize_size are {sizes}, expected {image_size} and 1 to {LARGEST_SIDE}")
    if found.resize == "exact" and (found.resize_size[0] < image_size[0] or found.resize_size[1] < image_size[1]):
        raise refuse(f"resize_size is {found.resize_size}, expected no less than image_size {image_size}")
    if min(found.std) < LEAST_STD:
        raise refuse(f"std is {found.std}, expected at least {LEAST_STD}")
    if found.rescale_factor <= 0:
        raise refuse(f"rescale_factor is {found.rescale_factor}, expected a positive number")
    if found.crop_fraction is not None and not LEAST_FRACTION <= found.crop_fraction <= 1:
        raise refuse(f"crop_fraction is {found.crop_fraction}, expected a fraction from {LEAST_FRACTION} to 1")
    return found


def site_kinds(record: Record, refuse: Refuse) -> dict[str, str]:
    """{site: kind of its quantizer}, in the record's order."""
    kinds = {}
    for i, entry in enumerate(record.sites):
        name, kind = entry.get("name"), entry.get("kind")
        where = f"quantization_config.sites[{i}]"
        if not isinstance(name, str) or name in kinds:
            raise refuse(f"{where}.name is {shown(name)}, expected a name of its own")
        if not isinstance(kind, str) or kind not in packing.KINDS:
            raise refuse(f"{where}.kind is {shown(kind)}, known are {', '.join(packing.KINDS)}")
        check_keys(entry, ["name", "kind", *fields_of(packing.KINDS[kind])], where, refuse)
        kinds[name] = kind
    return kinds


def check_sites(module, parameters, sites: Mapping, record: Record, refuse: Refuse) -> None:
    """The sites are those of the recipe, in running order."""
    try:
        wanted = site_filter(record.recipe)
    except InputError as error:
        raise refuse(str(error)) from None
    running = site_names(module, traverse_util.unflatten_dict(parameters, sep="/"), (*module.image_size, 3))
    expected = [name for name in running if wanted(name)] if record.activation_bits is not None else []
    for found, name in zip([*sites, None], [*expected, None], strict=False):
        if found != name:
            raise refuse(f"quantization_config.sites has {shown(found)} where the model has {shown(name)}")
    may = () if record.options is None else LOGARITHMIC
    for name, quantizer in sites.items():
        if isinstance(quantizer, LogQuantizer) and name.rpartition("/")[2] not in may:
            raise refuse(f"quantization_config.sites: {name} has a LogQuantizer, expected a UniformQuantizer there")


def check_scales(record: Record, tensors: Mapping, refuse: Refuse) -> None:
    """What the record repeats of the tensors is theirs."""
    for entry in record.sites:
        for field in entry.keys() - {"name", "kind"}:
            if entry[field] != tensors[f"sites/{entry['name']}/{field}"].tolist():
                raise refuse(f"quantization_config.sites: {field} of {entry['name']} is not {WEIGHTS}'s")
