"""DeiT-T of the published table (PSAQ-ViT, ECCV 2022): ImageNet, 32 images synthesized, recipe "paper".

    python -m launch.compare --config=configs/paper/deit_tiny.py --workdir=DIR [--config.data=folder:DIR]

Hardware: one GPU or TPU of 16 GB, and 8 CPU cores to decode images with.
Time:     synthesis about 10 s a seed on one H100, and 7 passes over 50,000 images, decoded once, in a minute
          on 8 cores: less than 10 minutes. Estimated from the operations, not measured. On two CPU cores an
          iteration takes 1.9 s (measured): half an hour a seed.
Expected: top-1 72.21 (float), 65.57 (W4A8), 71.56 (W8A8): as published, one run.
"""

import ml_collections

from configs.paper.common import published_row


def get_config() -> ml_collections.ConfigDict:
    return published_row("deit_tiny", "timm/deit_tiny_patch16_224.fb_in1k", crop_fraction=0.875)
