"""`load_model`: a hub id, a local directory in Hugging Face's or timm's layout, or `bundled:NAME` -> `Model`.

Weights are read through safetensors alone; nothing is ever unpickled and no code of a checkpoint is run.
"""

import functools
import logging
import os
import pathlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from psaq_jax import files
from psaq_jax.errors import InputError, first
from psaq_jax.models import names
from psaq_jax.models.architecture import Architecture
from psaq_jax.models.configs import read_architecture
from psaq_jax.models.fields import LARGEST_IMAGE, Fields
from psaq_jax.models.model import Model
from psaq_jax.models.positions import interpolate
from psaq_jax.models.preprocessing import Preprocessing
from psaq_jax.models.sources import CONFIG, PREPROCESSOR, PROCESSOR, find_checkpoint
from psaq_jax.models.swin import SwinTransformer
from psaq_jax.models.tensors import TensorReader, file_stamps, tensor_files

LOG = logging.getLogger(__name__)
OTHER_PROBLEMS = ("regression", "multi_label_classification")
USUAL_PIXELS = 16.0  # normalised ones lie within 3


def load_model(source: str, image_size: int | tuple[int, int] | None = None, revision: str | None = None) -> Model:
    """Loads a float model.

    Args:
      source: a local directory, a hub id such as "facebook/deit-tiny-patch16-224", or
        "bundled:fashion_mnist_vit".
      image_size: pixels (one number, or height and width) to run at. Position embeddings are interpolated as
        transformers or timm does; a Swin's windows stay as they are. Default: the checkpoint's own size; of DINOv2 and
        transformers' Swin, which run at any, their preprocessor's.
      revision: branch, tag or commit of a hub id.
    Returns:
      The `Model`, parameters in float32.
    Raises:
      InputError: no such source, no safetensors, an architecture that is not supported, tensors that do not
        fit the config, or weights that are not finite.
    """
    source = str(source)
    directory = find_checkpoint(source, revision)
    config = files.read_json(directory / CONFIG, "a checkpoint's directory holds config.json and model.safetensors")
    config = {name: value for name, value in config.items() if value is not None}  # null: transformers' default
    if "quantization_config" in config:
        raise InputError(f"{source}: its weights are quantized; psaq_jax.load_quantized reads what psaq_jax saved")
    architecture = read_architecture(config, source, lambda: TensorReader(tensor_files(directory)).shapes)
    module = architecture.module
    kind = config.get("problem_type")
    if module.classes == 1 or kind in OTHER_PROBLEMS:
        LOG.warning(
            "%s: has %d classes and problem_type %s; top-1, agreement and probabilities here are those of one class an "
            "image, the one of the greatest logit", source, module.classes, kind,
        )  # fmt: skip
    preprocessing = _read_preprocessing(directory, config)
    size = preprocessing.image_size if architecture.resizable else module.image_size
    if image_size is not None:
        size = image_size
    size = _checked_size(size)
    stamps = file_stamps(directory)  # before they are read
    params = load_params(directory, architecture, source)
    if size != module.image_size:
        module, params = resize(module, params, size, source, architecture.antialias)
    if preprocessing.image_size != size:
        if image_size is None:
            LOG.warning(
                "%s: its preprocessing makes images of %dx%d pixels, its config.json is of %dx%d, which is what it "
                "runs at here", source, *preprocessing.image_size, *size,
            )  # fmt: skip
        preprocessing = preprocessing.with_image_size(*size)
    return Model(jax.tree.map(jnp.asarray, params), module, architecture.labels, preprocessing, source, stamps)


def _checked_size(image_size) -> tuple[int, int]:
    size = tuple(image_size) if isinstance(image_size, list | tuple) else (image_size, image_size)
    whole = all(isinstance(side, int | np.integer) and not isinstance(side, bool) for side in size)
    if len(size) != 2 or not whole or not 1 <= min(size) <= max(size) <= LARGEST_IMAGE:
        raise InputError(f"image_size is {image_size!r}, expected 1 to {LARGEST_IMAGE} pixels, or (height, width)")
    return int(size[0]), int(size[1])


def _read_preprocessing(directory: pathlib.Path, config: Mapping) -> Preprocessing:
    if "architecture" in config:
        path = directory / CONFIG
        cfg = Fields(config, str(path)).object("pretrained_cfg") if "pretrained_cfg" in config else config
        make = functools.partial(Preprocessing.from_timm, cfg)
    else:
        path, preprocessor = _read_preprocessor(directory)
        make = functools.partial(Preprocessing.from_huggingface, config, preprocessor)
    try:
        found = make()
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    if path == directory:
        LOG.warning("%s has no preprocessor_config.json; assumed is what is usual: %s", directory, found)
    least, greatest = found.pixel_range
    if max(-least, greatest) > USUAL_PIXELS:
        LOG.warning(
            "%s: takes pixels from %g to %g; the synthesis starts from noise of standard deviation 1 and will not fill "
            "that range, and what is calibrated on its images will clip: take mean and std into the patch embedding",
            path, least, greatest,
        )  # fmt: skip
    return found


def _read_preprocessor(directory: pathlib.Path) -> tuple[pathlib.Path, Mapping | None]:
    """Where a preprocessor's fields are, and these; the directory and None if nowhere."""
    hint = "it holds the preprocessing"
    if os.path.lexists(directory / PREPROCESSOR):
        return directory / PREPROCESSOR, files.read_json(directory / PREPROCESSOR, hint)
    if os.path.lexists(directory / PROCESSOR):
        fields = Fields(files.read_json(directory / PROCESSOR, hint), str(directory / PROCESSOR))
        return directory / PROCESSOR, fields.object("image_processor")
    return directory, None


def load_params(directory: pathlib.Path, architecture: Architecture, source: str) -> dict:
    """Reads, checks and converts the weights: {module: {…: float32 array}}.

    Strict: every tensor of the model is there, of its shape, floating point and finite, and no other is.

    Raises:
      InputError: naming all that is missing, misshapen or unexpected.
    """
    module = architecture.module
    with TensorReader(tensor_files(directory)) as reader:
        _check_depth(module, len(reader.shapes), source)
        expected = _abstract_params_once(module)
        sources = {path: names.source_names(path, architecture.table, architecture.prefix) for path in expected}
        shapes = {
            name: names.source_shape(path, expected[path].shape, module.patch_size, len(sources[path]))
            for path in expected
            for name in sources[path]
        }
        names.check(shapes, reader.shapes, source)
        wrong = reader.not_floats(shapes)
        if wrong:
            raise InputError(
                f"{source}: {first(wrong)}; expected float16, bfloat16, float32 or float64 weights; "
                "save the checkpoint again as one of these"
            )
        flat, broken = {}, []
        for path, leaf in expected.items():
            tensors = [reader.read(name) for name in sources[path]]
            broken += [n for n, t in zip(sources[path], tensors, strict=True) if not np.isfinite(t).all()]
            flat[path] = names.from_source(path, leaf.shape, tensors)
    if broken:
        raise InputError(
            f"{source}: weights that are NaN, infinite, or beyond float32 in {first(broken)}; "
            "expected finite numbers; the checkpoint is damaged: download or train it again"
        )
    return traverse_util.unflatten_dict(flat, sep="/")


def _check_depth(module, tensors: int, source: str) -> None:
    """Refuses far too many blocks before they are traced one by one, which would take hours."""
    depths = getattr(module, "depths", None) or (module.depth,)
    if sum(depths) > tensors:
        raise InputError(
            f"{source}: config.json declares {sum(depths)} blocks, the checkpoint holds {tensors} tensors; "
            "give the config.json that belongs to these weights"
        )


def abstract_params(module) -> dict[str, jax.ShapeDtypeStruct]:
    """{parameter path: shape and type} of a module; nothing is allocated."""
    pixels = jax.ShapeDtypeStruct((1, *module.image_size, 3), jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), pixels)
    return traverse_util.flatten_dict(variables["params"], sep="/")


_abstract_params_once = functools.lru_cache(maxsize=16)(abstract_params)  # tracing takes most of a small load


def resize(module, params: dict, size: tuple[int, int], source: str, antialias: bool):
    """(module, params) at another image size, position embeddings interpolated.

    Raises:
      InputError: an image smaller than one patch, or than the windows of a Swin.
    """
    if size[0] < module.patch_size[0] or size[1] < module.patch_size[1]:
        raise InputError(f"{source}: image_size={size} is smaller than one patch {module.patch_size}")
    resized = module.clone(image_size=size)
    if isinstance(module, SwinTransformer):
        for stage in range(len(module.depths)):
            found, expected = resized.window_size(stage), module.window_size(stage)
            if found != expected:
                raise InputError(
                    f"{source}: image_size={size} makes windows of {found} in stage {stage}, its weights are for "
                    f"{expected}; take another size"
                )
        return resized, params
    table = interpolate(params["position_embedding"], module.grid, resized.grid, antialias)
    return resized, params | {"position_embedding": table}
