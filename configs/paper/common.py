"""What the configs of the published rows share."""

import ml_collections

from configs import demo


def published_row(name: str, model: str, crop_fraction: float) -> ml_collections.ConfigDict:
    """The config of one row of the published table.

    Args:
      name: the row's key in `psaq_jax.comparison.published.PUBLISHED`.
      crop_fraction: the release's `crop_pct`, which for DeiT is neither timm's (0.9) nor Hugging Face's (no aspect).
    """
    c = demo.get_config()  # whose synthesis is the paper's: 32 images, 2 rounds of 500 iterations
    c.published = name  # the row to compare with
    c.model = model  # hub id or directory
    c.crop_fraction = crop_fraction  # evaluation: short side to 224 / crop_fraction, bicubic, centre crop
    c.data = "tfds:imagenet2012:validation"  # or folder:DIR, one folder per class, as the release reads it
    c.data_workers = 8
    c.seeds = (0, 1, 2)  # of noise, labels and jitter; the published figures are one run; c.seed: of --baseline_dir
    c.quantization.bits = ("w4a8", "w8a8")  # the published ones
    c.quantization.recipe = "paper"  # "paper,default" shows ours beside it
    c.calibration = ("synthesized",)
    return c
