"""DeiT-S of the published table (PSAQ-ViT, ECCV 2022): ImageNet, 32 images synthesized, recipe "paper".

    python -m launch.compare --config=configs/paper/deit_small.py --workdir=DIR [--config.data=folder:DIR]

Hardware: one GPU or TPU of 16 GB, and 8 CPU cores to decode images with.
Time:     synthesis about 30 s a seed on one H100, and 7 passes over 50,000 images, decoded once, in a minute
          on 8 cores: less than 10 minutes. Estimated from the operations, not measured.
Expected: top-1 79.85 (float), 73.23 (W4A8), 76.92 (W8A8): as published, one run.
"""

import ml_collections

from configs.paper.common import published_row


def get_config() -> ml_collections.ConfigDict:
    return published_row("deit_small", "timm/deit_small_patch16_224.fb_in1k", crop_fraction=0.875)
