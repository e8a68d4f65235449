"""DeiT-S on ImageNet: recipe "default" beside "paper", five bit-widths, three seeds of synthesized images.

    python -m launch.sweep --config=configs/imagenet/deit_small.py --workdir=DIR [--config.data=folder:DIR]

Published top-1, float 79.85 (sources and what each method is given: common.py):
              RepQ-ViT  W4A4 69.03, W6A6 78.90
              FIMA-Q    W3A3 69.13, W4A4 76.87
              MaskAQ    W3A3 30.41, W4A4 63.81, W4A8 79.44
              PSAQ-ViT  W4A8 73.23, W8A8 76.92
"""

import ml_collections

from configs.imagenet.common import imagenet


def get_config() -> ml_collections.ConfigDict:
    return imagenet("timm/deit_small_patch16_224.fb_in1k", crop_fraction=0.875)
