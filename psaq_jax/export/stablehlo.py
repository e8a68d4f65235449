"""`export_stablehlo`: any model as StableHLO through jax.export, for processes that have jax and not psaq_jax.

    from jax import export
    model = export.deserialize(open("model.stablehlo", "rb").read())
    logits = model.call(pixels)            # weights inside
    logits = model.call(weights, pixels)   # weights beside: safetensors.numpy.load_file("model.safetensors")

jax writes and reads these files with the package flatbuffers, which it does not install by itself: a process without
psaq_jax needs both.
"""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flatbuffers.builder import BuilderSizeError
from jax import export

from psaq_jax import files
from psaq_jax.checks import check_choice
from psaq_jax.errors import InputError
from psaq_jax.export import checking
from psaq_jax.export.description import check_folder, write_description
from psaq_jax.models.model import Model, check_model
from psaq_jax.quantization.packing import pack
from psaq_jax.quantization.transform import QuantizedModel

FORMAT, FILE, WEIGHTS = "stablehlo", "model.stablehlo", "model.safetensors"
MARK = {"format": FORMAT}  # of the weights
PLATFORMS = ("cpu", "cuda", "tpu")
PLACES = ("inside", "beside")


def export_stablehlo(
    model: Model | QuantizedModel, directory, weights: str = "inside", platforms: tuple[str, ...] = PLATFORMS
) -> list[pathlib.Path]:
    """Writes model.stablehlo, export.json and, with weights "beside", model.safetensors.

    What an earlier export to StableHLO left there is replaced, and its model.safetensors removed if this one has none.

    The function takes float32 pixels [b, height, width, 3], any b, and gives float32 logits [b, classes]. A quantized
    model's kernels are int8 codes with their scales, two a byte where they fit 4 bits (the function unpacks them);
    an `IntegerModel`'s products are int8 times int8 into int32.

    Args:
      weights: "inside" the file, or "beside" it as safetensors: then the function takes them first.
      platforms: what it is lowered for, this machine's among them.
    Returns:
      The files written, export.json last.
    Raises:
      InputError: an unknown place, platforms without this machine's, a model that jax cannot lower for them, logits
        that are off, an artefact's folder, or no right to write.
    """
    check_choice("weights", weights, PLACES)
    if isinstance(platforms, str) or not platforms or not set(platforms) <= set(PLATFORMS):
        raise InputError(f"platforms is {platforms!r}, expected some of {PLATFORMS}")
    here = "cuda" if jax.default_backend() == "gpu" else jax.default_backend()
    if here not in platforms:
        raise InputError(f"platforms is {platforms!r}, expected {here!r} too, where the exported file is tried")
    check_model(model, "export_stablehlo")
    folder = check_folder(directory)
    path, beside = folder / FILE, folder / WEIGHTS
    if weights == "beside" and beside.exists() and not _is_exported(beside):
        raise InputError(f"{beside}: is there and was not exported, it may be a model's; choose another folder")
    tensors = stored_arrays(model)
    content = stablehlo_bytes(model, tensors, weights, platforms)
    arguments = (tensors,) if weights == "beside" else ()
    loaded = export.deserialize(bytearray(content))
    checked = checking.check(lambda pixels: loaded.call(*arguments, pixels), model, path)
    contents = {FILE: content}
    if arguments:
        contents = {WEIGHTS: safetensors.numpy.save(tensors, MARK)} | contents
    written = files.write_in_turn(folder, contents)
    if not arguments and _is_exported(beside):
        beside.unlink()
    more = {"platforms": list(platforms), "weights": weights}
    return [*written, write_description(folder, model, FORMAT, written, checked, **more)]


def _is_exported(weights: pathlib.Path) -> bool:
    """Whether an export wrote these weights: checkpoints and artefacts call theirs by the same name."""
    try:
        with safetensors.safe_open(weights, "numpy") as file:
            return (file.metadata() or {}).items() >= MARK.items()
    except (OSError, safetensors.SafetensorError):
        return False


def stablehlo_bytes(
    model, tensors: dict[str, np.ndarray], weights: str = "inside", platforms: tuple[str, ...] = PLATFORMS
) -> bytes:
    """The serialized function of a model and its `stored_arrays`, not yet checked."""
    pixels = jax.ShapeDtypeStruct(export.symbolic_shape(f"b, {', '.join(map(str, model.image_shape))}"), jnp.float32)

    def function(tensors, pixels):
        return restored(model, tensors)(pixels)

    if weights == "inside":
        function, arguments = functools.partial(function, jax.tree.map(jnp.asarray, tensors)), (pixels,)
    else:
        arguments = ({name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in tensors.items()}, pixels)
    try:
        return bytes(export.export(jax.jit(function), platforms=platforms)(*arguments).serialize())
    except BuilderSizeError:
        raise InputError(f"{FILE}: its format ends at 2 GiB, expected a smaller model; give weights='beside'") from None
    except (ValueError, NotImplementedError) as error:
        reason = str(error).split("\n", 1)[0]
        raise InputError(f"{type(model.module).__name__}: cannot be exported ({reason})") from None


def named_arrays(model) -> dict[str, np.ndarray]:
    """The leaves of a model in their order, by name: "params/block_0/attention/qkv/kernel/codes"."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(model)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}


def stored_arrays(model) -> dict[str, np.ndarray]:
    """`named_arrays`, but codes that fit 4 bits as ".../packed": uint8 [ceil(codes / 2)], see `packing.pack`."""
    found = {}
    for name, array in named_arrays(model).items():
        small = _packed(name) and -8 <= array.min() and array.max() <= 7
        found[_packed(name) if small else name] = pack(array, 4) if small else array
    return found


def restored(model, tensors):
    """The model with the arrays of `stored_arrays`; traceable."""
    leaves = []
    for name, like in named_arrays(model).items():
        if name in tensors:
            leaves.append(tensors[name])
            continue
        halves = tensors[_packed(name)]
        codes = jnp.stack([halves & 15, halves >> 4], axis=-1).reshape(-1)[: like.size].astype(jnp.int8)
        leaves.append(((codes ^ 8) - 8).reshape(like.shape))  # extends the sign
    return jax.tree.unflatten(jax.tree.structure(model), leaves)


def _packed(name: str) -> str:
    """The name of packed codes, or "" for what is no codes."""
    return f"{name.removesuffix('codes')}packed" if name.endswith("/codes") else ""
