"""Swin-S on ImageNet: recipe "default" beside "paper", five bit-widths, three seeds of synthesized images.

    python -m launch.sweep --config=configs/imagenet/swin_small.py --workdir=DIR [--config.data=folder:DIR]

Published top-1, float 83.23 (sources and what each method is given: common.py):
              RepQ-ViT  W4A4 79.45, W6A6 82.79
              PSAQ-ViT  W4A8 75.14, W8A8 76.64
"""

import ml_collections

from configs.imagenet.common import imagenet


def get_config() -> ml_collections.ConfigDict:
    return imagenet("timm/swin_small_patch4_window7_224.ms_in1k")
