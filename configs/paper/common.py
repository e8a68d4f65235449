"""What the configs of the published rows share."""

import ml_collections

from launch.config import recipe_fields, synthesis_fields


def published_row(name: str, model: str, crop_fraction: float) -> ml_collections.ConfigDict:
    """The config of one row of the published table.

    Args:
      name: the row's key in `psaq_jax.comparison.published.PUBLISHED`.
      crop_fraction: the release's `crop_pct`, which for DeiT is neither timm's (0.9) nor Hugging Face's (no aspect).
    """
    c = ml_collections.ConfigDict()
    c.published = name  # the row to compare with
    c.model = model  # hub id or directory
    c.image_size = 0  # pixels to run a ViT, DeiT or DINOv2 at; 0: the checkpoint's own
    c.revision = ""  # branch, tag or commit of a hub id
    c.crop_fraction = crop_fraction  # evaluation: short side to 224 / crop_fraction, bicubic, centre crop
    c.data = "tfds:imagenet2012:validation"  # or folder:DIR, one folder per class, as the release reads it
    c.data_workers = 8  # processes that decode images
    c.data_errors = "stop"  # at a broken image, or "skip" it
    c.class_index = ""  # of folder: data, a file with the classes in the model's order
    c.labels_file = ""  # of folder: data without folders per class
    c.seeds = (0, 1, 2)  # of noise, labels and jitter; the published figures are one run
    c.seed = 0  # of the live comparison (--baseline_dir)
    c.batch_size = 250  # images a pass of the evaluation
    c.dtype = "float32"  # of the synthesis' passes, as the release's
    c.synthesis = synthesis_fields()  # the paper's: 32 images, 2 rounds of 500 iterations
    c.quantization = ml_collections.ConfigDict()
    c.quantization.bits = ("w4a8", "w8a8")  # the published ones
    c.quantization.recipe = "paper"  # "paper,default" shows ours beside it
    c.quantization.options = recipe_fields()  # of recipe "default"
    c.calibration = ("synthesized",)  # also: "noise", "real"
    return c
