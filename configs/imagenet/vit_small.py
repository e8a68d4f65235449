"""ViT-S on ImageNet: recipe "default" beside "paper", five bit-widths, three seeds of synthesized images.

    python -m launch.sweep --config=configs/imagenet/vit_small.py --workdir=DIR [--config.data=folder:DIR]

Published top-1, float 81.39 (sources and what each method is given: common.py):
              RepQ-ViT  W4A4 65.05, W6A6 80.43
"""

import ml_collections

from configs.imagenet.common import imagenet


def get_config() -> ml_collections.ConfigDict:
    return imagenet("timm/vit_small_patch16_224.augreg_in21k_ft_in1k")
