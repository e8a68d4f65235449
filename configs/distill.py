"""Distillation without data (PSAQ-ViT V2) of the bundled model at four and three bits.

python -m launch.distill --config=configs/distill.py --workdir=DIR

docs/accuracy.md has what a third of it brings, on this model and on DINOv2 ViT-S/14
(--config.distillation.batch_size=8). Half of its cycles took 104 s a pair of bit-widths on one core of an Intel Xeon.
"""

import ml_collections

from configs import demo
from launch.config import distillation_fields, synthesis_fields


def get_config() -> ml_collections.ConfigDict:
    c = demo.get_config()
    c.synthesis = synthesis_fields(recipe="default")  # the images that the student starts on, and the generator's
    c.quantization.bits = ("w4a4", "w3a3")
    c.quantization.recipe = "default"  # of the student's start
    c.calibration = ("synthesized",)
    c.distillation = distillation_fields()
    return c
