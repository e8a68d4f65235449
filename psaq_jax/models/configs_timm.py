"""timm's config.json -> `Architecture`: sizes from the architecture's name, over which `model_args` go."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from psaq_jax.errors import InputError
from psaq_jax.models import configs_huggingface, names
from psaq_jax.models.architecture import Architecture
from psaq_jax.models.fields import DEEPEST, LARGEST_WIDTH, MOST_CLASSES, Fields
from psaq_jax.models.swin import SwinTransformer
from psaq_jax.models.vit import VisionTransformer

VIT_SIZES = {  # width, depth, heads
    "tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
}  # fmt: skip
SWIN_SIZES = {  # width of the first stage, depths, heads
    "tiny": (96, (2, 2, 6, 2), (3, 6, 12, 24)), "small": (96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "base": (128, (2, 2, 18, 2), (4, 8, 16, 32)), "large": (192, (2, 2, 18, 2), (6, 12, 24, 48)),
}  # fmt: skip

# Arguments that say nothing of inference, and arguments of which only the usual value is supported.
TRAINING = {
    "drop_rate", "drop_path_rate", "attn_drop_rate", "proj_drop_rate", "pos_drop_rate", "patch_drop_rate",
    "weight_init", "strict_img_size", "dynamic_img_size",  # the last is of `read`
}  # fmt: skip
USUAL = {
    "in_chans": 3, "class_token": True, "init_values": None, "qk_norm": False, "pre_norm": False,
    "fc_norm": None, "reg_tokens": 0, "no_embed_class": False, "always_partition": False, "head_dim": None,
    "pos_embed": "learn", "final_norm": True, "embed_norm_layer": None, "block_fn": None, "act_layer": None,
    "norm_layer": None,
}  # fmt: skip


def _arguments(config: Mapping, name_says: dict[str, Any], source: str) -> Fields:
    """`model_args` over what the name says; whatever else they ask for is refused, not ignored."""
    where = f"{source}: config.json"
    given = Fields(config, where).object("model_args") if config.get("model_args") else {}
    fields = Fields(given, f"{where}'s model_args")
    for name, value in given.items():
        if name in USUAL and value != USUAL[name]:
            raise fields.uncovered(name, repr(USUAL[name]))
        if name not in USUAL and name not in TRAINING and name not in name_says:
            raise fields.uncovered(name, f"only {', '.join(name_says)}")
    cfg, defaults = _pretrained_cfg(config), dict(name_says)
    if cfg.get("fixed_input_size") and isinstance(cfg.get("input_size"), list | tuple):
        defaults["img_size"] = list(cfg["input_size"][-2:])  # as timm does it
    defaults["global_pool"] = config.get("global_pool", name_says["global_pool"])
    defaults["num_classes"] = config.get("num_classes", cfg.get("num_classes", 1000))
    return Fields(defaults | dict(given), f"{where}'s model_args (or what its architecture says)")


def _pretrained_cfg(config: Mapping) -> Mapping:
    cfg = config.get("pretrained_cfg")
    return cfg if isinstance(cfg, Mapping) else {}


def _common(f: Fields) -> dict[str, Any]:
    if f.values["num_classes"] == 0:
        raise f.unsupported("num_classes", "backbones without a classifier")
    return {
        "image_size": f.pair("img_size"), "patch_size": f.pair("patch_size"),
        "classes": f.whole("num_classes", MOST_CLASSES), "qkv_bias": f.flag("qkv_bias"),
    }  # fmt: skip


def _vit(match, config, source, tensor_names):
    width, depth, heads = VIT_SIZES[match["size"]]
    f = _arguments(config, {
        "img_size": int(match["image"]), "patch_size": int(match["patch"]),
        "embed_dim": width, "depth": depth, "num_heads": heads, "num_classes": None, "mlp_ratio": 4.0,
        "qkv_bias": True, "global_pool": "token",
    }, source)  # fmt: skip
    f.choice("global_pool", ["token"])
    width, distilled = f.whole("embed_dim", LARGEST_WIDTH), bool(match["distilled"])
    return VisionTransformer(
        **_common(f), width=width, depth=f.whole("depth", DEEPEST), heads=f.whole("num_heads", LARGEST_WIDTH),
        hidden=f.hidden(width), layer_norm_eps=1e-6, distillation_token=distilled,
        head="distilled" if distilled else "class_token",
    ), names.TIMM_VIT  # fmt: skip


def _swin(match, config, source, tensor_names):
    width, depths, heads = SWIN_SIZES[match["size"]]
    f = _arguments(config, {
        "img_size": int(match["image"]), "patch_size": int(match["patch"]),
        "embed_dim": width, "depths": depths, "num_heads": heads,
        "window_size": int(match["window"]), "num_classes": None, "mlp_ratio": 4.0,
        "qkv_bias": True, "global_pool": "avg",
    }, source)  # fmt: skip
    f.choice("global_pool", ["avg"])
    depths, heads = f.wholes("depths", DEEPEST), f.wholes("num_heads", LARGEST_WIDTH)
    if len(heads) != len(depths):
        raise f.error("num_heads", f"{len(depths)} numbers, as many as depths has")
    widths = tuple(f.whole("embed_dim", LARGEST_WIDTH) * 2**i for i in range(len(depths)))
    original = is_original_swin(tensor_names)
    module = SwinTransformer(
        **_common(f), widths=widths, depths=depths, heads=heads, window=f.pair("window_size"),
        hidden=tuple(f.hidden(width) for width in widths),
        convention="transformers" if original else "timm",
    )  # fmt: skip
    return module, names.ORIGINAL_SWIN if original else names.timm_swin(len(depths))


def is_original_swin(tensor_names: Iterable[str]) -> bool:
    """Whether these are the names of the original release, and of timm before 0.9.

    Those have the merging at the end of a stage and a classifier `head`; timm since 0.9 has the merging at
    the head of the next stage, and `head.fc`.
    """
    return any(name in ("head.weight", "head.bias") or name.startswith("layers.0.downsample.") for name in tensor_names)


WRAPPER = "timm_model."  # what transformers' TimmWrapperForImageClassification may put before the names
_SIDE = r"\d{1,4}"
FAMILIES: dict[str, Callable] = {
    rf"(vit|deit)_(?P<size>{'|'.join(VIT_SIZES)})(?P<distilled>_distilled)?"
    rf"_patch(?P<patch>{_SIDE})_(?P<image>{_SIDE})(_in21k)?": _vit,
    rf"swin_(?P<size>{'|'.join(SWIN_SIZES)})"
    rf"_patch(?P<patch>{_SIDE})_window(?P<window>{_SIDE})_(?P<image>{_SIDE})(_in22k)?": _swin,
}


def read(config: Mapping[str, Any], source: str, tensor_names: Callable[[], Iterable[str]]) -> Architecture:
    """Raises InputError for an unsupported architecture, or a field that is missing or impossible."""
    where = f"{source}: config.json"
    architecture = str(config["architecture"]).split(".")[0]
    for pattern, build in FAMILIES.items():
        match = re.fullmatch(pattern, architecture)
        if match:
            found = list(tensor_names())
            wrapper = WRAPPER if found and all(name.startswith(WRAPPER) for name in found) else ""
            module, table = build(match, config, source, [name.removeprefix(wrapper) for name in found])
            table = {path: tuple(wrapper + name for name in sources) for path, sources in table.items()}
            resizable = bool((config.get("model_args") or {}).get("dynamic_img_size"))
            labels = _labels(config, module.classes, where)
            return Architecture(module, table, "", labels, resizable, antialias=True)
    raise InputError(
        f"{where} has architecture = {architecture[:80]!r}; supported are timm's "
        "vit_SIZE_patchN_IMAGE, deit_SIZE[_distilled]_patchN_IMAGE and swin_SIZE_patchN_windowN_IMAGE, "
        f"and transformers' {', '.join(configs_huggingface.FAMILIES)}; take another model"
    )


def _labels(config: Mapping, classes: int, where: str) -> tuple[str, ...]:
    places = (
        (config, where, "label_names"), (config, where, "labels"),  # as timm 0.6 and before called it
        (_pretrained_cfg(config), f"{where}'s pretrained_cfg", "label_names"),
    )  # fmt: skip
    for fields, whose, name in places:
        labels = fields.get(name)
        if labels is None:
            continue
        if isinstance(labels, Mapping):  # by index
            labels = [labels.get(str(i)) for i in range(len(labels))]
        if not isinstance(labels, list | tuple) or len(labels) != classes or None in labels:
            raise Fields(fields, whose).error(name, f"{classes} names, as many as num_classes")
        return tuple(map(str, labels))
    return tuple(str(i) for i in range(classes))
