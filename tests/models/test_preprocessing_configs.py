"""The preprocessor files of Hugging Face and timm: every form that is read, and what is refused."""

import numpy as np
import pytest

from psaq_jax.errors import InputError
from psaq_jax.models.preprocessing import Preprocessing
from tests.models.preprocessors import BIT, CONFIG, VIT, picture


@pytest.mark.parametrize(
    "model_type, size, before, mean",
    [
        ("deit", 224, 256, 0.485),
        ("vit", 224, 248, 0.5),
        ("swin", 224, 248, 0.485),
        ("dinov2", 518, 592, 0.485),
    ],
)
def test_families_without_a_preprocessor_file(model_type, size, before, mean):
    found = Preprocessing.from_huggingface({"model_type": model_type, "image_size": size}, None)
    assert (found.image_size, found.resize_size, found.resize) == ((size, size), (before, before), "cover")
    assert found.mean[0] == mean and found.interpolation == "bicubic"


@pytest.mark.parametrize(
    "preprocessor, geometry",
    {
        "feature extractor, integer size": (
            {"feature_extractor_type": "ViTFeatureExtractor", "size": 32}, ("exact", (32, 32), (32, 32)),
        ),
        "deit feature extractor": (
            {"feature_extractor_type": "DeiTFeatureExtractor", "size": 36, "crop_size": 32},
            ("exact", (36, 36), (32, 32)),
        ),
        "deit without a mention of a crop": (
            {"image_processor_type": "DeiTImageProcessor", "size": {"height": 32, "width": 32}},
            ("exact", (32, 32), (32, 32)),
        ),
        "deit default crop": (
            {"image_processor_type": "DeiTImageProcessorFast", "size": 40}, ("exact", (40, 40), (32, 32)),
        ),
        "bit, integer size is the shortest edge": (
            {"image_processor_type": "BitImageProcessorFast", "size": 40, "crop_size": 30},
            ("cover", (40, 40), (30, 30)),
        ),
        "vit, integer size is the shortest edge": (
            VIT | {"size": 40, "default_to_square": False, "do_center_crop": True, "crop_size": 30},
            ("cover", (40, 40), (30, 30)),
        ),
        "bit, integer size is a square": (
            BIT | {"size": 40, "default_to_square": True, "crop_size": 30}, ("exact", (40, 40), (30, 30)),
        ),
        "no type": ({"size": {"height": 24, "width": 32}}, ("exact", (24, 32), (24, 32))),
        "crop switched off": (
            {"image_processor_type": "DeiTImageProcessor", "size": 40, "do_center_crop": False},
            ("exact", (40, 40), (40, 40)),
        ),
    }.values(),
)  # fmt: skip
def test_forms_of_the_preprocessor_file(preprocessor, geometry):
    found = Preprocessing.from_huggingface(CONFIG, preprocessor)
    assert (found.resize, found.resize_size, found.image_size) == geometry


@pytest.mark.parametrize("config, expected", [
    ({"model_type": "vit"}, "ViT"), ({"model_type": "swin"}, "ViT"), ({}, "ViT"), ({"model_type": "deit"}, "DeiT"),
    ({"model_type": "dinov2"}, "Bit"), ({"model_type": "dinov2_with_registers"}, "Bit"),
    ({"model_type": "vit", "image_processor_type": "DeiTImageProcessor"}, "DeiT"),
])  # fmt: skip
def test_a_file_without_a_type_is_of_the_models(config, expected):
    """As transformers' AutoImageProcessor has it."""
    config, file = config | {"image_size": 32}, {"size": 40, "crop_size": 32}
    found = Preprocessing.from_huggingface(config, file)
    assert found == Preprocessing.from_huggingface(config, file | {"image_processor_type": f"{expected}ImageProcessor"})
    assert found.resize == ("cover" if expected == "Bit" else "exact")
    assert found.interpolation == ("bilinear" if expected == "ViT" else "bicubic")


def test_flags_switch_off_rescaling_and_normalising():
    found = Preprocessing.from_huggingface(CONFIG, VIT | {"do_rescale": False, "do_normalize": False})
    image = picture(32, 32)
    np.testing.assert_array_equal(found(image)[0], image.astype(np.float32))


@pytest.mark.parametrize(
    "preprocessor, field",
    [
        ({"image_processor_type": "CLIPSegProcessor"}, "image_processor_type"),
        (VIT | {"resample": 6}, "resample"),
        (VIT | {"resample": "bicubic"}, "resample"),
        (VIT | {"size": {"height": 32}}, "size"),
        (VIT | {"size": -3}, "size"),
        (VIT | {"size": 20_000, "do_center_crop": True, "crop_size": 28}, "size"),
        (VIT | {"size": {"longest_edge": 32}}, "size"),
        (BIT | {"size": {"shortest_edge": 40, "longest_edge": 99}}, "size.longest_edge"),
        (BIT | {"crop_size": "32"}, "crop_size"),
        (BIT | {"crop_size": 41}, "crop_size"),
        (BIT | {"do_center_crop": False}, "do_center_crop"),
        (VIT | {"do_resize": "yes"}, "do_resize"),
        (VIT | {"size": 40, "default_to_square": 0}, "default_to_square"),
        (VIT | {"do_pad": True, "pad_size": 240}, "do_pad"),
        (VIT | {"rescale_factor": 0}, "rescale_factor"),
        (VIT | {"image_mean": [0.5, 0.5]}, "image_mean"),
        (VIT | {"image_std": [0.5, 0.5, 0.0]}, "image_std"),
        (VIT | {"image_std": "0.5"}, "image_std"),
        (VIT | {"image_mean": [1e39, 0.5, 0.5]}, "image_mean"),
        (VIT | {"image_mean": [10**400, 0.5, 0.5]}, "image_mean"),
        (VIT | {"image_mean": True}, "image_mean"),
        (VIT | {"image_std": [True, 1.0, 1.0]}, "image_std"),
        (VIT | {"image_std": 1e39}, "image_std"),
        (VIT | {"rescale_factor": 1e308}, "rescale_factor"),
        (VIT | {"rescale_factor": True}, "rescale_factor"),
    ],
)
def test_bad_fields_are_named(preprocessor, field):
    with pytest.raises(InputError, match=f"^{field}: found .*, expected .*; ") as error:
        Preprocessing.from_huggingface(CONFIG, preprocessor)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "cfg, field",
    [
        ({"input_size": [224, 224]}, "pretrained_cfg.input_size"),
        ({"input_size": [1, 28, 28]}, "pretrained_cfg.input_size"),
        ({"input_size": [3, 10**400, 224]}, "pretrained_cfg.input_size"),
        ({"crop_pct": 0.01}, "resize_size, before the crop"),
        ({"interpolation": "random"}, "pretrained_cfg.interpolation"),
        ({"crop_mode": "border"}, "pretrained_cfg.crop_mode"),
        ({"crop_pct": 1.1}, "pretrained_cfg.crop_pct"),
        ({"crop_pct": 0}, "pretrained_cfg.crop_pct"),
        ({"crop_pct": 0.001}, "pretrained_cfg.crop_pct"),
        ({"std": [1, 1, 0]}, "pretrained_cfg.std"),
    ],
)
def test_bad_timm_fields_are_named(cfg, field):
    with pytest.raises(InputError, match=f"^{field}: found .*, expected .*; "):
        Preprocessing.from_timm(cfg)
