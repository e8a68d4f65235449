"""A sweep over the published models on ImageNet: both recipes at W8A8, W4A8 and W4A4, three calibrations, three seeds.

    python -m launch.sweep --config=configs/sweeps/imagenet.py --workdir=DIR [--config.data=folder:DIR]

Hardware: one GPU or TPU of 16 GB, and 8 CPU cores to decode images with.
Time:     275 passes over 50,000 images, which are decoded once a model, a minute on 8 cores, and kept (7.5 GB in the
          work folder while it runs, if 15 are free), and the synthesis of 15 groups of images, some minutes
          on one H100. Estimated, not measured. Started again, it goes on: a preemptible machine will do.
Expected: configs/paper/ has the published figures at W8A8 and W4A8; DeiT's are of a wider crop than its checkpoints'
          own (0.875 for 0.9), which this sweep evaluates with.
"""

import ml_collections

from configs.sweeps import demo


def get_config() -> ml_collections.ConfigDict:
    c = demo.get_config()
    c.models = (
        "timm/deit_tiny_patch16_224.fb_in1k",
        "timm/deit_small_patch16_224.fb_in1k",
        "timm/deit_base_patch16_224.fb_in1k",
        "timm/swin_tiny_patch4_window7_224.ms_in1k",
        "timm/swin_small_patch4_window7_224.ms_in1k",
    )
    c.data = "tfds:imagenet2012:validation"
    c.data_workers = 8  # processes that decode images
    c.quantization.bits = ("w8a8", "w4a8", "w4a4")
    return c
