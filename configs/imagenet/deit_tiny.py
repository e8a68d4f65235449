"""DeiT-T on ImageNet: recipe "default" beside "paper", five bit-widths, three seeds of synthesized images.

    python -m launch.sweep --config=configs/imagenet/deit_tiny.py --workdir=DIR [--config.data=folder:DIR]

Published top-1, float 72.21 (sources and what each method is given: common.py):
              RepQ-ViT  W4A4 57.43, W6A6 70.76
              FIMA-Q    W3A3 55.55, W4A4 66.84
              MaskAQ    W4A4 53.10, W4A8 69.95
              PSAQ-ViT  W4A8 65.57, W8A8 71.56
"""

import ml_collections

from configs.imagenet.common import imagenet


def get_config() -> ml_collections.ConfigDict:
    return imagenet("timm/deit_tiny_patch16_224.fb_in1k", crop_fraction=0.875)
