"""What the ImageNet configs share. The synthesis needs no ImageNet; its validation images are for the evaluation alone.

Hardware: one GPU or TPU of 16 GB (40 GB for the base models in float32), and 8 CPU cores to decode images with.
Time:     30 cells and the float model, each a pass over 50,000 images, which are decoded once, about a minute on 8
          cores, and kept (7.5 GB in the work folder while it runs, if 15 are free); beside it the synthesis, and
          minutes a seed for the quantization. Estimated, not measured. Killed, it goes on.

Where the published figures in these files come from. First and last layer have 8 bits in
RepQ-ViT and what followed it, as in our recipe "default":
  PSAQ-ViT  Li et al., ECCV 2022; no data. Residual sums and LayerNorm outputs are quantized too.
  RepQ-ViT  Li et al., ICCV 2023, its repository's table; 32 real images.
  FIMA-Q    Wu et al., CVPR 2025; 1,024 real images, block reconstruction.
  MaskAQ    no data; trains the quantized model.
"""

import ml_collections

from configs.sweeps import imagenet as all_models


def imagenet(model: str, crop_fraction: float = 0.0) -> ml_collections.ConfigDict:
    """The sweep of one model: a hub id or directory.

    Args:
      crop_fraction: of the published figures, where it isn't the checkpoint's own (configs/paper/common.py).
    """
    c = all_models.get_config()
    c.models = (model,)
    c.crop_fraction = crop_fraction
    c.synthesis.recipe = "default"
    c.quantization.bits = ("w8a8", "w6a6", "w4a8", "w4a4", "w3a3")
    c.calibration = ("synthesized",)  # also: "noise", "real"
    return c
