"""Hugging Face's config.json -> `Architecture`. Fields that a file leaves out are transformers' defaults."""

from collections.abc import Callable, Mapping
from typing import Any

from psaq_jax.errors import InputError
from psaq_jax.models import names
from psaq_jax.models.architecture import Architecture
from psaq_jax.models.fields import (
    DEEPEST,
    LARGEST_HIDDEN,
    LARGEST_IMAGE,
    LARGEST_WIDTH,
    MOST_CLASSES,
    Fields,
    is_whole,
)
from psaq_jax.models.layers import ACTIVATIONS
from psaq_jax.models.swin import SwinTransformer
from psaq_jax.models.vit import VisionTransformer


def _common(f: Fields) -> dict[str, Any]:
    return {
        "image_size": f.pair("image_size"), "patch_size": f.pair("patch_size"),
        "qkv_bias": f.flag("qkv_bias"), "layer_norm_eps": f.positive("layer_norm_eps", 1.0),
        "activation": f.choice("hidden_act", ACTIVATIONS),
    }  # fmt: skip


def _plain(f: Fields) -> dict[str, Any]:
    return _common(f) | {
        "width": f.whole("hidden_size", LARGEST_WIDTH), "depth": f.whole("num_hidden_layers", DEEPEST),
        "heads": f.whole("num_attention_heads", LARGEST_WIDTH),
    }  # fmt: skip


def _vit(f: Fields):
    hidden = f.whole("intermediate_size", LARGEST_HIDDEN)
    return VisionTransformer, _plain(f) | {"hidden": hidden}, names.HUGGING_FACE_VIT


def _deit(f: Fields):
    module, arguments, table = _vit(f)
    return module, arguments | {"distillation_token": True}, table


def _deit_distilled(f: Fields):
    module, arguments, _ = _deit(f)
    return module, arguments | {"head": "distilled"}, names.HUGGING_FACE_DEIT_DISTILLED


def _dinov2(f: Fields):
    arguments = _plain(f) | {
        "head": "class_and_mean_patch",
        "layer_scale": True,
        "swiglu": f.flag("use_swiglu_ffn"),
    }
    hidden = f.hidden(arguments["width"])
    if not arguments["swiglu"]:
        return VisionTransformer, arguments | {"hidden": hidden}, names.HUGGING_FACE_DINOV2
    hidden = (int(hidden * 2 / 3) + 7) // 8 * 8  # as Dinov2SwiGLUFFN: two thirds, rounded up to a multiple of 8
    return VisionTransformer, arguments | {"hidden": hidden}, names.HUGGING_FACE_DINOV2_SWIGLU


def _dinov2_registers(f: Fields):
    module, arguments, table = _dinov2(f)
    return module, arguments | {"registers": f.whole("num_register_tokens", LARGEST_WIDTH, least=0)}, table


def _swin(f: Fields):
    depths, heads = f.wholes("depths", DEEPEST), f.wholes("num_heads", LARGEST_WIDTH)
    if len(heads) != len(depths):
        raise f.error("num_heads", f"{len(depths)} numbers, as many as depths has")
    if f.flag("use_absolute_embeddings"):
        raise f.unsupported("use_absolute_embeddings", "Swin transformers with absolute position embeddings")
    widths = tuple(f.whole("embed_dim", LARGEST_WIDTH) * 2**i for i in range(len(depths)))
    arguments = _common(f) | {
        "widths": widths, "depths": depths, "heads": heads,
        "window": (f.whole("window_size", LARGEST_IMAGE),) * 2,
        "hidden": tuple(f.hidden(width) for width in widths),
    }  # fmt: skip
    return SwinTransformer, arguments, names.HUGGING_FACE_SWIN


FAMILIES: dict[str, tuple[str, Callable]] = {  # architectures[0]: (model_type, its reader)
    "ViTForImageClassification": ("vit", _vit),
    "DeiTForImageClassification": ("deit", _deit),
    "DeiTForImageClassificationWithTeacher": ("deit", _deit_distilled),
    "SwinForImageClassification": ("swin", _swin),
    "Dinov2ForImageClassification": ("dinov2", _dinov2),
    "Dinov2WithRegistersForImageClassification": ("dinov2_with_registers", _dinov2_registers),
}

RESIZABLE = ("swin", "dinov2", "dinov2_with_registers")  # run at the size that their preprocessor makes

_BASE = {
    "image_size": 224, "patch_size": 16, "hidden_size": 768, "num_hidden_layers": 12,
    "num_attention_heads": 12, "qkv_bias": True, "layer_norm_eps": 1e-12, "hidden_act": "gelu",
}  # fmt: skip
_VIT = _BASE | {"intermediate_size": 3072}
_DINOV2 = _BASE | {"layer_norm_eps": 1e-6, "mlp_ratio": 4, "use_swiglu_ffn": False}

# The class defaults of transformers, for fields that a file leaves out. The others are for training.
DEFAULTS: dict[str, dict[str, Any]] = {
    "vit": _VIT,
    "deit": _VIT,
    "swin": {
        "image_size": 224, "patch_size": 4, "embed_dim": 96, "depths": [2, 2, 6, 2],
        "num_heads": [3, 6, 12, 24], "window_size": 7, "mlp_ratio": 4.0, "qkv_bias": True,
        "layer_norm_eps": 1e-5, "hidden_act": "gelu", "use_absolute_embeddings": False,
    },
    "dinov2": _DINOV2 | {"patch_size": 14},
    "dinov2_with_registers": _DINOV2 | {"num_register_tokens": 4},
}  # fmt: skip


def read(config: Mapping[str, Any], source: str) -> Architecture:
    """Raises InputError for an unsupported architecture, or a field that is missing or impossible."""
    where = f"{source}: config.json"
    architectures = config.get("architectures")
    architecture = architectures[0] if isinstance(architectures, list) and architectures else architectures
    if not isinstance(architecture, str) or architecture not in FAMILIES:
        found = f"architectures[0] = {str(architecture)[:80]!r}" if architecture is not None else "no architectures"
        bare = isinstance(architecture, str) and "Classification" not in architecture
        raise InputError(
            f"{where} has {found}{', which is without a classifier' if bare else ''}; "
            f"supported are {', '.join(FAMILIES)}, and timm's vit_*, deit_* and swin_*; take another model"
        )
    model_type, build = FAMILIES[architecture]
    given = Fields(config, where)
    if config.get("model_type", model_type) != model_type:
        raise given.error("model_type", f'"{model_type}", which {architecture} has')
    if config.get("num_channels", 3) != 3:
        raise given.unsupported("num_channels", "models of images that have not 3 channels")
    labels = _labels(given)
    module, arguments, table = build(Fields(DEFAULTS[model_type] | dict(config), where))
    resizable, antialias = model_type in RESIZABLE, model_type == "dinov2_with_registers"
    return Architecture(module(**arguments, classes=len(labels)), table, model_type, labels, resizable, antialias)


def _labels(given: Fields) -> tuple[str, ...]:
    """Class names from id2label, or from num_labels alone; two if neither is there, as in transformers."""
    id2label = given.values.get("id2label")
    if id2label is None:
        count = given.whole("num_labels", MOST_CLASSES) if "num_labels" in given.values else 2
        return tuple(f"LABEL_{i}" for i in range(count))
    if not isinstance(id2label, Mapping) or not 1 <= len(id2label) <= MOST_CLASSES:
        raise given.error("id2label", f"an object of 1 to {MOST_CLASSES} classes")
    labels = {str(key): value for key, value in id2label.items()}
    numbers = [str(i) for i in range(len(labels))]
    if set(labels) != set(numbers):
        raise given.error("id2label", f'the keys "0" to "{len(labels) - 1}"')
    declared = given.values.get("num_labels", len(labels))
    if not is_whole(declared, len(labels), len(labels)):
        raise given.error("num_labels", f"{len(labels)}, as many as id2label has")
    return tuple(str(labels[number]) for number in numbers)
