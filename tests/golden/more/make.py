"""Made this folder's checkpoints and reference logits: `python make.py`.

With torch 2.13.0, transformers 5.23.0, timm 1.0.31 (without its dependencies), safetensors, pillow.

Small random models of geometries that the other references lack: padded windows and maps, windows as large as the map,
images that are not square, patches that do not divide the image. And Swins of ../checkpoints at another image size:
another_size/NAME. Tests never run this file.
"""

import importlib.abc
import importlib.machinery
import json
import pathlib
import sys
import types

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file

HERE = pathlib.Path(__file__).parent
SMALL = {"embed_dim": 8, "depths": [2, 2], "num_heads": [2, 4], "mlp_ratio": 2.0}
HF_SWIN = {
    "hf_swin_padded": {"image_size": 26, "patch_size": 2, "window_size": 4},  # maps of 13 and 7 patches
    "hf_swin_oblong": {"image_size": [27, 40], "patch_size": 4, "window_size": 3, "qkv_bias": False},  # 7 x 10
    "hf_swin_whole": {"image_size": 16, "patch_size": 2, "window_size": 4, "hidden_act": "gelu_new",
                      "layer_norm_eps": 1e-3},  # maps of 8 and 4
}  # fmt: skip
TIMM_SWIN = {
    "timm_swin_padded": {"img_size": 26, "patch_size": 2, "window_size": 4},
    "timm_swin_oblong": {"img_size": [24, 40], "patch_size": 4, "window_size": 5},
    "timm_swin_clamped": {"img_size": 24, "patch_size": 2, "window_size": 8, "qkv_bias": False},
    "timm_swin_halves": {"img_size": [36, 28], "patch_size": 4, "window_size": 4},  # maps of 9x7 and, rounded up, 5x4
}
VIT = {
    "hf_vit_oblong": {"image_size": [24, 16], "patch_size": 8, "hidden_act": "quick_gelu", "qkv_bias": False},
    "hf_vit_remainder": {"image_size": 27, "patch_size": 5, "hidden_act": "relu"},
}


def randomize(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            scale = 0.3 if p.ndim > 1 else 0.1
            offset = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            p.copy_(offset + scale * torch.randn(p.shape, generator=generator))
    return model.eval()


def save_reference(model, name, size):
    (HERE / name).mkdir(parents=True, exist_ok=True)
    height, width = size if isinstance(size, list) else (size, size)
    pixels = torch.randn(3, 3, height, width, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        output = model(pixels)
    logits = output if isinstance(output, torch.Tensor) else output.logits
    np.savez_compressed(HERE / name / "reference.npz", pixel_values_nchw=pixels.numpy(), logits=logits.numpy())
    print(name, logits.abs().max().item())


def hugging_face(config, cls, name, seed):
    config.num_labels = 5
    model = randomize(cls(config), seed)
    model.save_pretrained(HERE / name)
    save_reference(model, name, config.image_size)


def timm_swin(arguments, name, seed):
    import timm

    arguments = SMALL | arguments | {"num_classes": 5}
    model = randomize(timm.create_model("swin_tiny_patch4_window7_224", **arguments), seed)
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    height, width = (arguments["img_size"],) * 2 if isinstance(arguments["img_size"], int) else arguments["img_size"]
    config = {
        "architecture": "swin_tiny_patch4_window7_224", "num_classes": 5, "model_args": arguments,
        "pretrained_cfg": {"input_size": [3, height, width], "crop_pct": 0.9, "interpolation": "bicubic"},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "model.safetensors")
    save_reference(model, name, arguments["img_size"])


def another_size(name, load):
    """Of a checkpoint at a size whose maps its windows do not divide."""
    size = [41, 58]
    save_reference(load(HERE.parent / "checkpoints" / name, size).eval(), f"another_size/{name}", size)


def timm_checkpoint(folder, size):
    import timm

    arguments = json.loads((folder / "config.json").read_text())["model_args"] | {"img_size": size}
    model = timm.create_model("swin_tiny_patch4_window7_224", **arguments)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model


class WithoutTorchvision(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """timm imports torchvision for its transforms, which nothing here uses and which has no CPU build."""

    class Type(type):
        def __getattr__(cls, name):  # members of enumerations
            if name.startswith("_"):
                raise AttributeError(name)
            return name

    class Module(types.ModuleType):
        def __getattr__(self, name):
            if name.startswith("__"):
                raise AttributeError(name)
            return WithoutTorchvision.Type(name, (), {})

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torchvision":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return self.Module(spec.name)

    def exec_module(self, module):
        pass


if __name__ == "__main__":
    for i, (name, changes) in enumerate(HF_SWIN.items()):
        config = transformers.SwinConfig(**SMALL, **changes)
        hugging_face(config, transformers.SwinForImageClassification, name, i)
    for i, (name, changes) in enumerate(VIT.items()):
        sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
        hugging_face(transformers.ViTConfig(**sizes, **changes), transformers.ViTForImageClassification, name, 10 + i)
    another_size("hf_swin", lambda folder, size: transformers.SwinForImageClassification.from_pretrained(folder))
    sys.meta_path.insert(0, WithoutTorchvision())
    another_size("timm_swin", timm_checkpoint)
    for i, (name, arguments) in enumerate(TIMM_SWIN.items()):
        timm_swin(arguments, name, 20 + i)
