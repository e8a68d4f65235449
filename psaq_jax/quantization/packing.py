"""A quantized model as named tensors and back: what an artefact's model.safetensors holds.

    params/PATH/codes       int8, the kernel's shape: 8-bit codes
    params/PATH/packed      uint8 [ceil(n·bits/8)]: codes of 2 to 7 bits, see `pack`
    params/PATH/code_scale  float32 [output channels]; the kernel is codes·scale
    params/PATH             float32: biases, LayerNorms, tokens, positions, as they are
    sites/SITE/FIELD        float32: the fields of the site's quantizer

What comes from a file is not trusted: names, types, shapes and values are checked before they are used.
"""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Collection, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from flax import traverse_util

from psaq_jax.errors import InputError
from psaq_jax.quantization.representation import LogQuantizer, QuantizedKernel, UniformQuantizer
from psaq_jax.quantization.transform import QuantizedModel

FORMAT = "psaq_jax-1"
LEAST_SITE_SCALE = 1e-30  # its reciprocal is finite in float32; grids begin at float32's eps and training keeps near

# The kinds of quantizers that a file may name: registered dataclasses whose fields are all float32 arrays.
KINDS = {kind.__name__: kind for kind in (UniformQuantizer, LogQuantizer)}

Refuse = Callable[[str], InputError]  # what is wrong -> the error that names the file


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Signed codes −2^(b−1)..2^(b−1)−1 of any shape -> uint8 [ceil(n·b/8)].

    Two's complement in C order, one little-endian stream: code i fills bits i·b to (i+1)·b−1, bit k is bit
    k%8 of byte k//8 (4 bits: two codes a byte, the first one low). Bits left over are zero.

    Raises:
      InputError: a code outside the bit-width.
    """
    half = 2 ** (bits - 1)
    if codes.size and (codes.min() < -half or codes.max() >= half):
        found = f"{codes.min()} to {codes.max()}"
        raise InputError(f"codes are {found}, expected {-half} to {half - 1} for {bits} bits; quantize again")
    # Eight codes fill `bits` whole bytes and fit one 64-bit word.
    fields = np.pad(codes.reshape(-1), (0, -codes.size % 8)).astype(np.int64) & (2**bits - 1)
    words = np.bitwise_or.reduce(fields.reshape(-1, 8) << (bits * np.arange(8)), axis=1)
    stream = words.astype("<i8").view(np.uint8).reshape(-1, 8)[:, :bits].reshape(-1)
    return stream[: packed_size(codes.size, bits)].copy()


def unpack(packed: np.ndarray, bits: int, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of `pack`: int8 codes of `shape`.

    Raises:
      InputError: another number of bytes than these codes fill, or left-over bits that are not zero.
    """
    count = math.prod(shape)
    if packed.shape != (packed_size(count, bits),):
        expected = packed_size(count, bits)
        raise InputError(f"packed codes are {packed.shape}, expected {expected} bytes for {count} codes")
    words = np.zeros((-(-count // 8), 8), np.uint8)
    words[:, :bits] = np.pad(packed, (0, -packed.size % bits)).reshape(-1, bits)
    fields = (words.view("<i8") >> (bits * np.arange(8))) & (2**bits - 1)
    fields = fields.reshape(-1)
    if fields[count:].any():
        raise InputError("bits after the last code are not zero")
    half = 2 ** (bits - 1)
    return ((fields[:count] ^ half) - half).astype(np.int8).reshape(shape)  # extends the sign


def packed_size(count: int, bits: int) -> int:
    """How many bytes `count` codes of `bits` bits fill."""
    return -(-count * bits // 8)


def to_tensors(q: QuantizedModel) -> dict[str, np.ndarray]:
    """The tensors of a quantized model, by the names above."""
    tensors, bits = {}, dict(q.kernel_bits)
    for path, leaf in traverse_util.flatten_dict(q.params, sep="/").items():
        if path not in bits:
            tensors[f"params/{path}"] = np.asarray(leaf, np.float32)
            continue
        codes, name = np.asarray(leaf.codes, np.int8), kernel_tensor(path, bits[path])
        tensors[name] = codes if bits[path] == 8 else pack(codes, bits[path])
        tensors[f"params/{path}/code_scale"] = np.asarray(leaf.scale, np.float32)
    for site, quantizer in q.sites.items():
        for field in dataclasses.fields(quantizer):
            tensors[f"sites/{site}/{field.name}"] = np.asarray(getattr(quantizer, field.name), np.float32)
    return tensors


def kernel_tensor(path: str, bits: int) -> str:
    return f"params/{path}/{'codes' if bits == 8 else 'packed'}"


def activation_scales(parameters: Mapping[str, jax.ShapeDtypeStruct], names: Collection[str]):
    """{path: shape} of the scales that a file of tensors `names` holds: a module has them or not, see `layers.Mlp`."""
    found = {}
    for path, kernel in parameters.items():
        scale = path.replace("mlp/dense2/kernel", "mlp/activation_scale")
        if scale != path and f"params/{scale}" in names:
            found[scale] = jax.ShapeDtypeStruct(kernel.shape[:1], kernel.dtype)
    return found


def layout(parameters: Mapping[str, jax.ShapeDtypeStruct], bits: Mapping[str, int], kinds: Mapping[str, str]):
    """{tensor name: (safetensors type, shape)} of a file.

    Args:
      parameters: {path: shape} of the module; bits: {kernel's path: bits}; kinds: {site: key of KINDS}.
    """
    expected: dict[str, tuple[str, tuple[int, ...]]] = {}
    for path, leaf in parameters.items():
        if path not in bits:
            expected[f"params/{path}"] = ("F32", leaf.shape)
            continue
        count = math.prod(leaf.shape)
        stored = ("I8", leaf.shape) if bits[path] == 8 else ("U8", (packed_size(count, bits[path]),))
        expected[kernel_tensor(path, bits[path])] = stored
        expected[f"params/{path}/code_scale"] = ("F32", leaf.shape[-1:])
    for site, kind in kinds.items():
        expected |= {f"sites/{site}/{field.name}": ("F32", ()) for field in dataclasses.fields(KINDS[kind])}
    return expected


def stored_names(path: pathlib.Path, refuse: Refuse) -> set[str]:
    """The tensors' names, from the header alone.

    Raises:
      InputError: not a whole safetensors file of this format, by `refuse`.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            found, names = (file.metadata() or {}).get("format"), set(file.keys())
    except (OSError, safetensors.SafetensorError) as error:
        raise refuse(f"is not a whole safetensors file ({shown(str(error))})") from None
    if found != FORMAT:
        raise refuse(f"metadata.format is {shown(found)}, expected {FORMAT!r}")
    return names


def read_tensors(path: pathlib.Path, expected: Mapping, refuse: Refuse) -> dict[str, np.ndarray]:
    """Reads a safetensors file that holds exactly `expected` (see `layout`), all floats finite.

    Nothing is read before every name, type and shape has been compared.

    Raises:
      InputError: anything else, by `refuse`.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            names = set(file.keys())
            for name in sorted(names ^ set(expected))[:1]:
                raise refuse(f"tensor {shown(name)} is {'not expected' if name in names else 'missing'}")
            for name, (kind, shape) in expected.items():
                part = file.get_slice(name)
                if part.get_dtype() != kind or tuple(part.get_shape()) != shape:
                    found = f"{part.get_dtype()} {shown(part.get_shape())}"
                    raise refuse(f"tensor {shown(name)} is {found}, expected {kind} {list(shape)}")
            tensors = {name: np.asarray(file.get_tensor(name)) for name in expected}
    except (OSError, safetensors.SafetensorError) as error:
        raise refuse(f"cannot be read ({shown(str(error))})") from None
    for name, tensor in tensors.items():
        if tensor.dtype == np.float32 and not np.isfinite(tensor).all():
            raise refuse(f"tensor {shown(name)} holds NaN or infinity, expected finite numbers")
    return tensors


def to_params(
    tensors: Mapping[str, np.ndarray], parameters: Mapping[str, jax.ShapeDtypeStruct],
    bits: Mapping[str, int], refuse: Refuse,
) -> dict:  # fmt: skip
    """The params tree of a quantized model.

    Raises:
      InputError: scales that are not positive, or bits after the last code, by `refuse`.
    """
    flat = {}
    for path, leaf in parameters.items():
        if path not in bits:
            flat[path] = jnp.asarray(tensors[f"params/{path}"])
            continue
        name, scale = kernel_tensor(path, bits[path]), tensors[f"params/{path}/code_scale"]
        if not (scale > 0).all():
            raise refuse(f"tensor 'params/{path}/code_scale' holds {scale.min()}, expected positive scales")
        try:
            codes = tensors[name] if bits[path] == 8 else unpack(tensors[name], bits[path], leaf.shape)
        except InputError as error:
            raise refuse(f"tensor {name!r}: {error}") from None
        flat[path] = QuantizedKernel(codes=jnp.asarray(codes), scale=jnp.asarray(scale))
    return traverse_util.unflatten_dict(flat, sep="/")


def to_quantizer(tensors: Mapping[str, np.ndarray], site: str, kind: str, refuse: Refuse):
    """The quantizer of a site.

    Raises:
      InputError: a scale that is not positive or next to zero, bits or a zero point that no grid has, by `refuse`.
    """
    fields = {f.name: tensors[f"sites/{site}/{f.name}"] for f in dataclasses.fields(KINDS[kind])}
    levels = 2.0 ** np.clip(fields.get("bits", 8), 0, 8) - 1
    rules: dict[str, tuple[Callable, str]] = {
        "scale": (lambda x: x >= LEAST_SITE_SCALE, f"a positive number of at least {LEAST_SITE_SCALE:g}"),
        "steps": (lambda x: (x == np.round(x)) & (x >= 1), "a whole number of at least 1"),
        "bits": (lambda x: (x == np.round(x)) & (x >= 2) & (x <= 8), "a whole number from 2 to 8"),
        "zero_point": (lambda x: (x == np.round(x)) & (x >= 0) & (x <= levels), "whole, 0 to 2^bits - 1"),
    }
    for name in sorted(fields):  # bits before zero_point, which depends on them
        value = fields[name]
        holds, expected = rules.get(name, (np.isfinite, "finite"))
        if not holds(value):
            raise refuse(f"tensor {shown(f'sites/{site}/{name}')} holds {value.item()}, expected {expected}")
    return KINDS[kind](**{name: jnp.asarray(value) for name, value in fields.items()})


def shown(value) -> str:
    """A value from a file, fit for one line of an error."""
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
