"""config.json -> architecture: defaults, published names, and one line for every bad field."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from psaq_jax.errors import InputError
from psaq_jax.models import configs_huggingface, configs_timm
from psaq_jax.models.configs import read_architecture
from psaq_jax.models.layers import ACTIVATIONS
from tests.golden_files import GOLDEN
from tests.models.checkpoints import read_config

VIT = {"architectures": ["ViTForImageClassification"], "id2label": {"0": "cat", "1": "dog"}}
SWIN = {"architectures": ["SwinForImageClassification"], "id2label": {"0": "cat", "1": "dog"}}
DINOV2 = {"architectures": ["Dinov2ForImageClassification"], "id2label": {"0": "cat", "1": "dog"}}
TIMM = {"architecture": "vit_tiny_patch16_224", "num_classes": 5}
TIMM_SWIN = {"architecture": "swin_tiny_patch4_window7_224", "num_classes": 5}


@pytest.mark.parametrize("model_type", configs_huggingface.DEFAULTS)
def test_defaults_are_those_of_transformers(model_type):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoConfig.for_model(model_type).to_dict()
    for name, value in configs_huggingface.DEFAULTS[model_type].items():
        found = theirs[name]
        assert (list(found) if isinstance(found, tuple) else found) == value, name


@pytest.mark.parametrize(
    ("name", "image", "patch", "width", "depth", "heads"),
    [
        ("vit_tiny_patch16_224", 224, 16, 192, 12, 3),
        ("vit_small_patch32_384.augreg_in21k_ft_in1k", 384, 32, 384, 12, 6),
        ("vit_large_patch16_224.augreg_in21k", 224, 16, 1024, 24, 16),
        ("vit_huge_patch14_224.orig_in21k", 224, 14, 1280, 32, 16),
        ("deit_base_patch16_384.fb_in1k", 384, 16, 768, 12, 12),
    ],
)
def test_published_timm_vits_need_no_model_args(name, image, patch, width, depth, heads):
    module = read_architecture({"architecture": name, "num_classes": 1000}, "DIR").module
    assert (module.image_size, module.patch_size) == ((image, image), (patch, patch))
    assert (module.width, module.depth, module.heads, module.hidden) == (width, depth, heads, 4 * width)
    assert module.layer_norm_eps == 1e-6


@pytest.mark.parametrize(
    ("name", "image", "window", "width", "depths", "heads"),
    [
        ("swin_tiny_patch4_window7_224.ms_in1k", 224, 7, 96, (2, 2, 6, 2), (3, 6, 12, 24)),
        ("swin_small_patch4_window7_224", 224, 7, 96, (2, 2, 18, 2), (3, 6, 12, 24)),
        ("swin_base_patch4_window12_384", 384, 12, 128, (2, 2, 18, 2), (4, 8, 16, 32)),
        ("swin_base_patch4_window7_224_in22k", 224, 7, 128, (2, 2, 18, 2), (4, 8, 16, 32)),
        ("swin_large_patch4_window12_384.ms_in22k", 384, 12, 192, (2, 2, 18, 2), (6, 12, 24, 48)),
    ],
)
def test_published_timm_swins_need_no_model_args(name, image, window, width, depths, heads):
    module = read_architecture({"architecture": name, "num_classes": 1000}, "DIR").module
    assert (module.image_size, module.window) == ((image, image), (window, window))
    assert (module.widths[0], module.depths, module.heads) == (width, depths, heads)
    assert module.layer_norm_eps == 1e-5


def test_timm_takes_a_fixed_input_size_from_pretrained_cfg():
    cfg = {"fixed_input_size": True, "input_size": [3, 384, 320]}
    assert read_architecture(TIMM | {"pretrained_cfg": cfg}, "DIR").module.image_size == (384, 320)
    given = TIMM | {"pretrained_cfg": cfg, "model_args": {"img_size": 256}}
    assert read_architecture(given, "DIR").module.image_size == (256, 256)


@pytest.mark.parametrize(
    "fields, classes",
    [({}, 1000), ({"pretrained_cfg": {"num_classes": 7}}, 7), (TIMM | {"pretrained_cfg": {"num_classes": 7}}, 5)],
)
def test_timm_counts_classes_by_config_then_pretrained_cfg(fields, classes):
    found = read_architecture({"architecture": TIMM["architecture"]} | fields, "DIR")
    assert (found.module.classes, len(found.labels)) == (classes, classes)


def test_timm_ignores_training_arguments_and_usual_values():
    arguments = {"drop_path_rate": 0.1, "in_chans": 3, "class_token": True, "global_pool": "token"}
    assert read_architecture(TIMM | {"model_args": arguments}, "DIR").module.width == 192


def test_labels():
    assert read_architecture(VIT, "DIR").labels == ("cat", "dog")
    assert read_architecture({"architectures": VIT["architectures"], "num_labels": 3}, "DIR").labels[2] == "LABEL_2"
    assert len(read_architecture({"architectures": VIT["architectures"]}, "DIR").labels) == 2
    assert read_architecture(TIMM, "DIR").labels == ("0", "1", "2", "3", "4")
    for name in ("label_names", "labels"):  # timm 0.6 and before wrote the second
        assert read_architecture(TIMM | {name: list("abcde")}, "DIR").labels == tuple("abcde")
    assert read_architecture(TIMM | {"pretrained_cfg": {"label_names": list("vwxyz")}}, "DIR").labels == tuple("vwxyz")
    by_index = {
        "pretrained_cfg": {"label_names": list("vwxyz")},
        "label_names": dict(zip("43210", "edcba", strict=True)),
    }
    assert read_architecture(TIMM | by_index, "DIR").labels == tuple("abcde")
    ten = {str(i): f"c{i}" for i in reversed(range(11))}
    assert read_architecture(VIT | {"id2label": ten}, "DIR").labels == tuple(f"c{i}" for i in range(11))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_of_the_config(name):
    assert read_architecture(VIT | {"hidden_act": name}, "DIR").module.activation == name


def test_dinov2_and_swin_take_the_image_size_of_their_preprocessor():
    for name, (model_type, _) in configs_huggingface.FAMILIES.items():
        found = read_architecture({"architectures": [name], "num_labels": 2}, "DIR")
        assert found.resizable == (model_type == "swin" or model_type.startswith("dinov2")), name
    assert not any(read_architecture(config, "DIR").resizable for config in (TIMM, TIMM_SWIN))
    assert read_architecture(TIMM | {"model_args": {"dynamic_img_size": True}}, "DIR").resizable


def test_activations_are_their_formulas():
    x = np.linspace(-6, 6, 49)
    exact = x / 2 * (1 + np.array([math.erf(v / math.sqrt(2)) for v in x]))
    tanh = x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    silu = x / (1 + np.exp(-x))
    expected = {
        "gelu": exact, "gelu_python": exact, "gelu_new": tanh, "gelu_fast": tanh, "gelu_accurate": tanh,
        "gelu_pytorch_tanh": tanh, "quick_gelu": x / (1 + np.exp(-1.702 * x)), "relu": np.maximum(x, 0),
        "silu": silu, "swish": silu,
    }  # fmt: skip
    assert expected.keys() == ACTIVATIONS.keys()
    for name, values in expected.items():
        found = ACTIVATIONS[name](jnp.asarray(x, jnp.float32))
        np.testing.assert_allclose(found, values, rtol=1e-5, atol=2e-6, err_msg=name)  # atol: 1 − erf near −6


@pytest.mark.parametrize("width, heads, expected", [(1536, 24, 4096), (40, 4, 112), (36, 4, 96)])
def test_swiglu_width_is_rounded_as_transformers_does_it(width, heads, expected):
    """Two thirds of four times the width, up to a multiple of 8: of 160 a whole 106, and 112."""
    changes = {"hidden_size": width, "num_attention_heads": heads, "use_swiglu_ffn": True}
    assert read_architecture(DINOV2 | changes, "D").module.hidden == expected


@pytest.mark.parametrize(
    ("names", "original"),
    [
        (["head.fc.weight", "layers.1.downsample.norm.weight"], False),
        (["head.weight", "layers.0.downsample.norm.weight"], True),
        (["head.bias"], True),
        ([], False),
    ],
)
def test_the_layout_of_swin_follows_from_the_tensor_names(names, original):
    assert configs_timm.is_original_swin(names) == original
    module = read_architecture(TIMM_SWIN, "DIR", lambda: names).module
    assert module.convention == ("transformers" if original else "timm")


BAD = {
    "unsupported": (
        VIT | {"architectures": ["ResNetForImageClassification"]},
        "ResNetForImageClassification",
    ),
    "no architecture": ({}, "supported are ViTForImageClassification"),
    "architectures of numbers": ({"architectures": [3]}, "architectures[0] = '3'"),
    "architectures of lists": ({"architectures": [["ViT"]]}, "architectures[0]"),
    "unsupported timm": ({"architecture": "resnet50"}, "supported are timm's vit_SIZE_patchN_IMAGE"),
    "timm number": ({"architecture": 5}, "architecture = '5'"),
    "other model_type": (VIT | {"model_type": "bert"}, "model_type = 'bert', expected \"vit\""),
    "grey": (VIT | {"num_channels": 1}, "num_channels = 1; models of images that have not 3 channels are not"),
    "zero heads": (VIT | {"num_attention_heads": 0}, "num_attention_heads = 0"),
    "heads don't divide": (VIT | {"num_attention_heads": 7}, "width 768 and 7 heads"),
    "negative width": (VIT | {"hidden_size": -4}, "hidden_size = -4"),
    "text as number": (VIT | {"hidden_size": "768"}, "hidden_size = '768'"),
    "float as number": (VIT | {"num_hidden_layers": 2.0}, "num_hidden_layers = 2.0"),
    "true as number": (VIT | {"num_hidden_layers": True}, "num_hidden_layers = True"),
    "null": (VIT | {"patch_size": None}, "patch_size = None"),
    "huge width": (VIT | {"hidden_size": 10**12}, "hidden_size = 1000000000000"),
    "huge image": (VIT | {"image_size": 10**9}, "image_size"),
    "huge depth": (VIT | {"num_hidden_layers": 10**9}, "num_hidden_layers"),
    "huge labels": ({"architectures": VIT["architectures"], "num_labels": 10**10}, "num_labels"),
    "more than an artefact holds": ({"architectures": VIT["architectures"], "num_labels": 100_001}, "num_labels"),
    "longer than an artefact holds": (VIT | {"id2label": {"0": "a" * 2**22}}, "4194308 bytes of labels"),
    "timm more than an artefact holds": (TIMM | {"num_classes": 100_001}, "num_classes"),
    "three sides": (VIT | {"image_size": [1, 2, 3]}, "image_size = [1, 2, 3]"),
    "patch larger than image": (VIT | {"image_size": 8}, "a patch must not be larger than the image"),
    "NaN epsilon": (VIT | {"layer_norm_eps": math.nan}, "layer_norm_eps = nan"),
    "infinite epsilon": (VIT | {"layer_norm_eps": math.inf}, "layer_norm_eps = inf"),
    "unknown activation": (VIT | {"hidden_act": "wave"}, "hidden_act = 'wave', expected one of gelu"),
    "bias as text": (VIT | {"qkv_bias": "yes"}, "qkv_bias = 'yes'"),
    "label numbers with a gap": (VIT | {"id2label": {"0": "a", "2": "b"}}, 'expected the keys "0" to "1"'),
    "labels as a list": (VIT | {"id2label": ["a", "b"]}, "id2label"),
    "no labels": (VIT | {"id2label": {}}, "id2label"),
    "num_labels differs": (VIT | {"num_labels": 9}, "num_labels = 9, expected 2"),
    "lines in a value": (VIT | {"hidden_act": "a\nb"}, "hidden_act"),
    "ratio": (DINOV2 | {"mlp_ratio": -1}, "mlp_ratio = -1"),
    "NaN ratio": (DINOV2 | {"mlp_ratio": math.nan}, "mlp_ratio"),
    "swin heads": (SWIN | {"num_heads": [3, 6]}, "num_heads = [3, 6], expected 4 numbers"),
    "swin depths": (SWIN | {"depths": 4}, "depths = 4"),
    "swin no stages": (SWIN | {"depths": []}, "depths = []"),
    "swin window": (SWIN | {"window_size": 0}, "window_size = 0"),
    "swin huge window": (SWIN | {"window_size": 999, "image_size": 4000}, "windows of 999 patches"),
    "swin absolute": (SWIN | {"use_absolute_embeddings": True}, "use_absolute_embeddings = True"),
    "timm swin image": (TIMM_SWIN | {"model_args": {"img_size": 3}}, "a patch must not be larger than the image"),
    "a backbone": ({"architectures": ["Dinov2Model"]}, "= 'Dinov2Model', which is without a classifier; supported are"),
    "another classifier": ({"architectures": ["Swinv2ForImageClassification"]}, "Classification'; supported are"),
    "no architectures": ({"architectures": None}, "has no architectures; supported are"),
    "timm zero classes": (TIMM | {"num_classes": 0}, "num_classes = 0; backbones without a classifier"),
    "timm other norm": (TIMM | {"model_args": {"norm_layer": "rms"}}, "'rms', expected None: others are not supported"),
    "timm argument": (TIMM | {"model_args": {"act_layer": "relu"}}, "act_layer = 'relu'"),
    "timm unusual": (TIMM | {"model_args": {"init_values": 1e-5}}, "init_values"),
    "timm args": (TIMM | {"model_args": [1]}, "model_args = [1], expected an object"),
    "timm pooling": (
        TIMM | {"model_args": {"global_pool": "avg"}},
        "global_pool = 'avg', expected one of token",
    ),
    "timm pooling at the top": (TIMM | {"global_pool": "avg"}, "global_pool = 'avg', expected one of token"),
    "timm labels": (TIMM | {"label_names": ["a"]}, "label_names"),
    "timm labels of the weights": (
        TIMM | {"pretrained_cfg": {"label_names": ["a"]}},
        "config.json's pretrained_cfg has label_names = ['a'], expected",
    ),
    "timm labels from 1": (TIMM | {"label_names": dict(zip("12345", "abcde", strict=True))}, "label_names"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_field_is_named_in_one_line(case):
    config, expected = BAD[case]
    with pytest.raises(InputError) as caught:
        read_architecture(config, "DIR", tuple)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("DIR: config.json")
    assert expected in message


def test_every_golden_config_is_read():
    for path in GOLDEN.glob("*/*/config.json"):
        assert read_architecture(read_config(path.parent), str(path), tuple).labels
