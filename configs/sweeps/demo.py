"""A sweep on the bundled model: two recipes, four bit-widths, three calibrations, three seeds; 72 cells.

    python -m launch.sweep --config=configs/sweeps/demo.py --workdir=DIR

The images of a seed are synthesized once and shared by its cells. Three seeds of the paper's synthesis and 72 passes
over 10,000 images of 28x28 pixels. More models: --config.models='("bundled:fashion_mnist_vit", "DIR")'; for large ones
`--config.synthesis.iterations=100` shows the shape of the table first (in another workdir).
"""

import ml_collections

from configs import demo
from launch.config import distillation_fields


def get_config() -> ml_collections.ConfigDict:
    c = demo.get_config()
    del c.model, c.seed
    c.models = ("bundled:fashion_mnist_vit",)  # each: hub id, directory or bundled:NAME; hard:SOURCE: its hard copy
    c.seeds = (0, 1, 2)  # of noise, labels, jitter and the choice of real images
    c.crop_fraction = 0.0  # evaluation: short side to size / crop_fraction, centre crop; 0: the checkpoint's own
    c.quantization.bits = ("w8a8", "w6a6", "w4a8", "w4a4")
    c.quantization.recipe = "paper,default"  # also "distill"
    # Of recipe "distill": a quarter of the student's steps in configs/distill.py, half of the generator's.
    c.distillation = distillation_fields(cycles=4, generator_iterations=25, student_steps=25)
    return c
