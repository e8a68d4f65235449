"""preprocessor_config.json and timm's pretrained_cfg -> the fields of `Preprocessing`."""

from collections.abc import Mapping

from psaq_jax.errors import InputError
from psaq_jax.models.fields import is_whole

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
RESAMPLE = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # Pillow's codes 0 to 5

# The class defaults of transformers, for fields that a file leaves out. A number as size means a square unless
# `default_to_square` is false, as it is by default where the default size is a shortest edge.
PROCESSORS = {
    "ViT": {"size": {"height": 224, "width": 224}, "resample": 2, "image_mean": HALF, "image_std": HALF},
    "DeiT": {
        "size": {"height": 256, "width": 256}, "resample": 3, "do_center_crop": True,
        "image_mean": HALF, "image_std": HALF,
    },
    "Bit": {
        "size": {"shortest_edge": 224}, "resample": 3, "do_center_crop": True,
        "image_mean": CLIP_MEAN, "image_std": CLIP_STD,
    },
}  # fmt: skip
TIMM_DEFAULTS = {
    "pretrained_cfg.input_size": (3, 224, 224), "pretrained_cfg.crop_pct": 0.875,
    "pretrained_cfg.crop_mode": "center", "pretrained_cfg.interpolation": "bicubic",
    "pretrained_cfg.mean": IMAGENET_MEAN, "pretrained_cfg.std": IMAGENET_STD,
}  # fmt: skip
CROPS = ("center", "squash")
# So that pixels stay finite in float32, and that what loads can be saved in an artefact.
LEAST_STD = 1e-6
LARGEST_SIDE = 2**14  # pixels
BEYOND = 1e30  # every number is smaller
LEAST_FRACTION = 0.01
TYPES = {"deit": "DeiT", "dinov2": "Bit", "dinov2_with_registers": "Bit"}  # of a file that names none; others: "ViT"
SUFFIXES = ("ImageProcessorFast", "ImageProcessorPil", "ImageProcessor", "FeatureExtractor")

# Evaluation of a family whose checkpoint has no preprocessor file: (crop fraction, mean, std), bicubic.
FAMILIES = {
    "deit": (0.875, IMAGENET_MEAN, IMAGENET_STD),
    "vit": (0.9, HALF, HALF),
    "swin": (0.9, IMAGENET_MEAN, IMAGENET_STD),
    "dinov2": (0.875, IMAGENET_MEAN, IMAGENET_STD),
    "dinov2_with_registers": (0.875, IMAGENET_MEAN, IMAGENET_STD),
}


def from_huggingface(config: Mapping, preprocessor: Mapping | None) -> dict:
    """The fields of `Preprocessing`; see `Preprocessing.from_huggingface`."""
    model_size = size_pair(config.get("image_size", 224), "config.json: image_size")
    if preprocessor is None:
        family = config.get("model_type")
        if family not in FAMILIES:
            known = f"one of {', '.join(FAMILIES)}"
            raise bad("config.json: model_type", family, known, "add a preprocessor_config.json")
        fraction, mean, std = FAMILIES[family]
        return fractional(model_size, fraction, "center") | {"mean": mean, "std": std}
    if preprocessor.get("do_pad"):
        raise bad("do_pad", preprocessor["do_pad"], "false", "padding is not supported: pad before, or leave it out")
    defaults = PROCESSORS[processor_type(config, preprocessor)]
    fields = defaults | {key: value for key, value in preprocessor.items() if value is not None}
    resize, before = resize_fields(fields, defaults)
    mentioned = preprocessor.get("do_center_crop") is not None or preprocessor.get("crop_size") is not None
    crop = flag(fields, "do_center_crop", False)
    if crop and not mentioned and resize == "exact" and before == model_size:
        crop = False
    image_size = before if resize == "exact" else model_size
    if crop:
        fits = model_size[0] <= before[0] and model_size[1] <= before[1]
        image_size = size_pair(fields.get("crop_size", model_size if fits else 224), "crop_size")
    elif resize == "cover":
        raise bad("do_center_crop", False, "true beside size.shortest_edge (one shape)", "set it to true")
    if resize != "none" and (image_size[0] > before[0] or image_size[1] > before[1]):
        raise bad("crop_size", list(image_size), f"no more than size {list(before)}", "enlarge size")
    rescale = positive(fields, "rescale_factor", 1 / 255) if flag(fields, "do_rescale", True) else 1.0
    normalize = flag(fields, "do_normalize", True)
    return {
        "image_size": image_size, "resize": resize, "resize_size": before,
        "interpolation": resample_name(fields["resample"]), "rescale_factor": rescale,
        "mean": triple(fields, "image_mean", None) if normalize else (0.0,) * 3,
        "std": triple(fields, "image_std", LEAST_STD) if normalize else (1.0,) * 3,
    }  # fmt: skip


def from_timm(cfg: Mapping) -> dict:
    """The fields of `Preprocessing`; see `Preprocessing.from_timm`."""
    fields = TIMM_DEFAULTS | {f"pretrained_cfg.{key}": value for key, value in cfg.items() if value is not None}
    name = "pretrained_cfg.input_size"
    shape = fields[name]
    if not isinstance(shape, list | tuple) or len(shape) != 3 or shape[0] != 3:
        raise bad(name, shape, "[3, height, width]", "correct it in config.json")
    fraction = positive(fields, "pretrained_cfg.crop_pct", None)
    if not LEAST_FRACTION <= fraction <= 1:
        expected = f"a fraction from {LEAST_FRACTION} to 1"
        raise bad("pretrained_cfg.crop_pct", fraction, expected, "correct it in config.json")
    geometry = fractional(size_pair(shape[1:], name), fraction, one_of(fields, "pretrained_cfg.crop_mode", CROPS))
    return geometry | {
        "interpolation": one_of(fields, "pretrained_cfg.interpolation", RESAMPLE),
        "mean": triple(fields, "pretrained_cfg.mean", None),
        "std": triple(fields, "pretrained_cfg.std", LEAST_STD),
    }


def fractional(size, fraction, mode) -> dict:
    """timm's geometry: resize to floor(size / fraction), centre crop to size."""
    return {
        "image_size": size, "resize_size": tuple(int(side / fraction) for side in size),
        "resize": "exact" if mode == "squash" else "cover", "crop_fraction": fraction,
    }  # fmt: skip


def processor_type(config: Mapping, preprocessor: Mapping) -> str:
    """A key of PROCESSORS: what the files name, or what transformers takes for the model's type."""
    name = preprocessor.get("image_processor_type") or preprocessor.get("feature_extractor_type")
    if name is None:
        name = config.get("image_processor_type") or f"{TYPES.get(config.get('model_type'), 'ViT')}ImageProcessor"
    for suffix in SUFFIXES:
        if isinstance(name, str) and name.endswith(suffix) and name.removesuffix(suffix) in PROCESSORS:
            return name.removesuffix(suffix)
    expected = ", ".join(f"{key}ImageProcessor" for key in PROCESSORS)
    raise bad("image_processor_type", name, f"one of {expected} (or their Fast variants)", "save it as one of these")


def resize_fields(fields, defaults) -> tuple[str, tuple[int, int]]:
    size, field = fields["size"], "size"
    if isinstance(size, int) and not flag(fields, "default_to_square", "shortest_edge" not in defaults["size"]):
        size = {"shortest_edge": size}
    if isinstance(size, Mapping) and "shortest_edge" in size:
        if size.get("longest_edge") is not None:
            raise bad("size.longest_edge", size["longest_edge"], "shortest_edge alone", "remove it")
        mode, pair = "cover", size_pair(size["shortest_edge"], "size.shortest_edge")
    else:
        mode, pair = "exact", size_pair(size, field)
    return (mode if flag(fields, "do_resize", True) else "none"), pair


def size_pair(value, field) -> tuple[int, int]:
    """224, [224, 224] or {"height": 224, "width": 224} -> (224, 224)."""
    pair = (value.get("height"), value.get("width")) if isinstance(value, Mapping) else value
    pair = (pair, pair) if isinstance(pair, int) else pair
    if (
        not isinstance(pair, list | tuple)
        or len(pair) != 2
        or not all(is_whole(side, 1, LARGEST_SIDE) for side in pair)
    ):
        raise bad(field, value, f"whole numbers from 1 to {LARGEST_SIDE} (height, width)", "correct it")
    return tuple(pair)


def resample_name(code) -> str:
    if not is_whole(code, 0, len(RESAMPLE) - 1):
        raise bad("resample", code, "one of Pillow's codes 0 to 5 (2 bilinear, 3 bicubic)", "correct it")
    return RESAMPLE[code]


def one_of(fields, name, choices) -> str:
    if fields[name] not in choices:
        raise bad(name, fields[name], f"one of {', '.join(choices)}", "correct it in config.json")
    return fields[name]


def flag(fields, name, default) -> bool:
    value = fields.get(name, default)
    if not isinstance(value, bool):
        raise bad(name, value, "true or false", "correct it")
    return value


def positive(fields, name, default) -> float:
    value = fields.get(name, default)
    if not is_number(value) or value <= 0:
        raise bad(name, value, f"a positive number below {BEYOND:g}", "correct it")
    return float(value)


def is_number(value) -> bool:
    """Whether it is a number (not a bool) that artefacts take."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < BEYOND


def triple(fields, name, least) -> tuple[float, float, float]:
    value = fields[name]
    value = (value,) * 3 if isinstance(value, int | float) else value
    if (
        not isinstance(value, list | tuple)
        or len(value) != 3
        or not all(map(is_number, value))
        or (least is not None and min(value) < least)
    ):
        at_least = "" if least is None else f"of at least {least} and "
        expected = f"three numbers {at_least}below {BEYOND:g}"
        raise bad(name, fields[name], expected, "correct it")
    return tuple(map(float, value))


def bad(field, found, expected, action) -> InputError:
    return InputError(f"{field}: found {found!r}, expected {expected}; {action}")
