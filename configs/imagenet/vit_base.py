"""ViT-B on ImageNet: recipe "default" beside "paper", five bit-widths, three seeds of synthesized images.

    python -m launch.sweep --config=configs/imagenet/vit_base.py --workdir=DIR [--config.data=folder:DIR]

Published top-1, float 84.54 (sources and what each method is given: common.py):
              RepQ-ViT  W4A4 68.48, W6A6 83.62
"""

import ml_collections

from configs.imagenet.common import imagenet


def get_config() -> ml_collections.ConfigDict:
    return imagenet("timm/vit_base_patch16_224.augreg_in21k_ft_in1k")
