"""The exact number of parameters of every published variant, from its config alone; nothing is allocated."""

import math

import pytest

from psaq_jax.models.configs import read_architecture
from psaq_jax.models.configs_timm import SWIN_SIZES, VIT_SIZES
from psaq_jax.models.loading import abstract_params

# ViT, DeiT and Swin: the counts that timm prints. DINOv2, of width w and depth d with a linear head on the class token
# and the mean patch token (mask_token not counted), by hand:
#   patches 14*14*3*w + w, class token w, positions (37*37 + 1)*w,
#   a block: 4*(w*w + w) attention, 8*w*w + 5*w MLP, 2*2*w norms, 2*w layer scales = 12*w*w + 15*w,
#   norm 2*w, head 2*w*1000 + 1000
#   S (384, 12): 226,176 + 384 + 526,080 + 21,302,784 + 768 + 769,000 = 22,825,192
#   B (768, 12): 452,352 + 768 + 1,052,160 + 85,072,896 + 1,536 + 1,537,000 = 88,116,712
#   L (1024, 24): 603,136 + 1,024 + 1,402,880 + 302,358,528 + 2,048 + 2,049,000 = 306,416,616
TIMM = {
    "vit_base_patch16_224": 86_567_656,
    "deit_tiny_patch16_224": 5_717_416,
    "deit_small_patch16_224": 22_050_664,
    "deit_base_patch16_224": 86_567_656,
    "deit_tiny_distilled_patch16_224": 5_910_800,
    "deit_small_distilled_patch16_224": 22_436_432,
    "deit_base_distilled_patch16_224": 87_338_192,
    "swin_tiny_patch4_window7_224": 28_288_354,
    "swin_small_patch4_window7_224": 49_606_258,
    "swin_base_patch4_window7_224": 87_768_224,
}
DINOV2 = {
    "small": (384, 12, 6, 22_825_192),
    "base": (768, 12, 12, 88_116_712),
    "large": (1024, 24, 16, 306_416_616),
}
LABELS = {"id2label": {str(i): f"class {i}" for i in range(1000)}}
SIZES = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12)}


def count(config) -> int:
    module = read_architecture(config, "test").module
    return sum(math.prod(leaf.shape) for leaf in abstract_params(module).values())


def test_no_family_of_the_issue_is_missing():
    assert {name.split("_")[0] for name in TIMM} == {"vit", "deit", "swin"}
    assert set(SWIN_SIZES) - {"large"} == {"tiny", "small", "base"}
    assert set(SIZES) <= set(VIT_SIZES)


@pytest.mark.parametrize("name", TIMM)
def test_timm(name):
    assert count({"architecture": f"{name}.some_tag", "num_classes": 1000}) == TIMM[name]


@pytest.mark.parametrize("size", DINOV2)
def test_dinov2(size):
    width, depth, heads, expected = DINOV2[size]
    config = {
        "architectures": ["Dinov2ForImageClassification"], "model_type": "dinov2", "image_size": 518,
        "patch_size": 14, "hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads,
    }  # fmt: skip
    assert count(config | LABELS) == expected


@pytest.mark.parametrize(
    ("architecture", "size", "name"),
    [
        ("ViTForImageClassification", "base", "vit_base_patch16_224"),
        ("ViTForImageClassification", "tiny", "deit_tiny_patch16_224"),
        ("DeiTForImageClassificationWithTeacher", "small", "deit_small_distilled_patch16_224"),
    ],
)
def test_hugging_face_and_timm_agree(architecture, size, name):
    width, heads = SIZES[size]
    config = {
        "architectures": [architecture], "hidden_size": width, "intermediate_size": 4 * width,
        "num_attention_heads": heads,
    }  # fmt: skip
    assert count(config | LABELS) == TIMM[name]


def test_hugging_face_swin_tiny_is_its_config_class_without_any_field():
    assert count({"architectures": ["SwinForImageClassification"]} | LABELS) == TIMM["swin_tiny_patch4_window7_224"]
