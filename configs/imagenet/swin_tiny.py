"""Swin-T on ImageNet: recipe "default" beside "paper", five bit-widths, three seeds of synthesized images.

    python -m launch.sweep --config=configs/imagenet/swin_tiny.py --workdir=DIR [--config.data=folder:DIR]

Published top-1, float 81.35 (sources and what each method is given: common.py):
              RepQ-ViT  W4A4 72.31, W6A6 80.69
              MaskAQ    W4A4 70.40, W4A8 80.19
              PSAQ-ViT  W4A8 71.79, W8A8 75.35
"""

import ml_collections

from configs.imagenet.common import imagenet


def get_config() -> ml_collections.ConfigDict:
    return imagenet("timm/swin_tiny_patch4_window7_224.ms_in1k")
