"""DeiT-B on ImageNet: recipe "default" beside "paper", five bit-widths, three seeds of synthesized images.

    python -m launch.sweep --config=configs/imagenet/deit_base.py --workdir=DIR [--config.data=folder:DIR]

Published top-1, float 81.80 (sources and what each method is given: common.py):
              RepQ-ViT  W4A4 75.61, W6A6 81.27
              FIMA-Q    W3A3 76.54, W4A4 80.33
              MaskAQ    W4A4 74.41, W4A8 81.40
              PSAQ-ViT  W4A8 77.05, W8A8 79.10
"""

import ml_collections

from configs.imagenet.common import imagenet


def get_config() -> ml_collections.ConfigDict:
    return imagenet("timm/deit_base_patch16_224.fb_in1k", crop_fraction=0.875)
