"""A ViT or a Swin in Hugging Face's layout: config.json, preprocessor_config.json, model.safetensors."""

import pathlib

import safetensors.numpy
from flax import traverse_util

from psaq_jax import files
from psaq_jax.models.names import HUGGING_FACE_SWIN, HUGGING_FACE_VIT, to_source
from psaq_jax.models.sources import CONFIG, PREPROCESSOR, WEIGHTS
from psaq_jax.models.swin import SwinTransformer
from psaq_jax.models.vit import VisionTransformer


def save_huggingface(directory, module: VisionTransformer | SwinTransformer, params, labels, mean, std) -> None:
    """Writes a checkpoint of an image classifier that transformers, timm-style tools and `load_model` read.

    Args:
      module: a plain ViT, or a Swin of square windows whose widths double from stage to stage.
      labels: class names in the order of the logits.
      mean, std: per channel, of pixels in [0, 1].
    """
    directory = pathlib.Path(directory)
    height, width = module.image_size
    model_type, table, shape = _swin(module) if isinstance(module, SwinTransformer) else _vit(module)
    config = shape | {
        "model_type": model_type, "hidden_act": module.activation, "qkv_bias": module.qkv_bias,
        "layer_norm_eps": module.layer_norm_eps, "num_channels": 3,
        "image_size": _side(module.image_size), "patch_size": _side(module.patch_size),
        "id2label": {str(i): name for i, name in enumerate(labels)},
        "label2id": {name: i for i, name in enumerate(labels)},
    }  # fmt: skip
    processor = {
        "image_processor_type": "ViTImageProcessor", "do_resize": True, "size": {"height": height, "width": width},
        "resample": 3, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
        "image_mean": list(mean), "image_std": list(std),
    }  # fmt: skip
    flat = traverse_util.flatten_dict(params, sep="/")
    tensors = to_source(flat, table, module.patch_size, model_type)
    files.write_bytes(directory / WEIGHTS, safetensors.numpy.save(tensors, metadata={"format": "pt"}))
    files.write_json(directory / CONFIG, config)
    files.write_json(directory / PREPROCESSOR, processor)


def _vit(module: VisionTransformer):
    """(model type, names of the tensors, what config.json says of the shape)."""
    return "vit", HUGGING_FACE_VIT, {
        "architectures": ["ViTForImageClassification"], "hidden_size": module.width,
        "num_hidden_layers": module.depth, "num_attention_heads": module.heads, "intermediate_size": module.hidden,
    }  # fmt: skip


def _swin(module: SwinTransformer):
    """The same."""
    return "swin", HUGGING_FACE_SWIN, {
        "architectures": ["SwinForImageClassification"], "embed_dim": module.widths[0],
        "depths": list(module.depths), "num_heads": list(module.heads),
        "mlp_ratio": module.hidden[0] / module.widths[0], "window_size": module.window[0],
    }  # fmt: skip


def _side(size: tuple[int, int]) -> int | list[int]:
    """As Hugging Face writes it: one number for squares."""
    return size[0] if size[0] == size[1] else list(size)
