"""A sweep on the bundled model: two recipes, four bit-widths, three calibrations, three seeds; 72 cells.

    python -m launch.sweep --config=configs/sweeps/demo.py --workdir=DIR

The images of a seed are synthesized once and shared by its cells. Three seeds of the paper's synthesis and 72 passes
over 10,000 images of 28x28 pixels. More models: --config.models='("bundled:fashion_mnist_vit", "DIR")'; for large ones
`--config.synthesis.iterations=100` shows the shape of the table first (in another workdir).
"""

import dataclasses

import ml_collections

from launch.config import recipe_fields, synthesis_fields
from psaq_jax.distillation.config import DistillationConfig


def get_config() -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.models = ("bundled:fashion_mnist_vit",)  # each: hub id, directory or bundled:NAME; hard:SOURCE: its hard copy
    c.image_size = 0  # pixels to run a ViT, DeiT or DINOv2 at; 0: the checkpoint's own
    c.revision = ""  # branch, tag or commit of a hub id
    c.data = "bundled:fashion_mnist"  # of all models; "" for none: agreement replaces accuracy
    c.data_workers = 0  # processes that decode images; 0: none
    c.data_errors = "stop"  # at a broken image, or "skip" it
    c.class_index = ""  # of folder: data, a file with the classes in the model's order
    c.labels_file = ""  # of folder: data without folders per class
    c.crop_fraction = 0.0  # evaluation: short side to size / crop_fraction, centre crop; 0: the checkpoint's own
    c.seeds = (0, 1, 2)  # of noise, labels, jitter and the choice of real images
    c.batch_size = 250  # images a pass of the evaluation
    c.dtype = "float32"  # of the synthesis' passes: float32 or bfloat16
    c.synthesis = synthesis_fields()  # the paper's
    c.quantization = ml_collections.ConfigDict()
    c.quantization.bits = ("w8a8", "w6a6", "w4a8", "w4a4")  # w2 to w8 or auto:AVERAGE, a2 to a8 or a32 (floats)
    c.quantization.recipe = "paper,default"  # by commas; "default-gptq" leaves an ingredient out; "distill"
    c.quantization.options = recipe_fields()  # of recipe "default"
    c.calibration = ("synthesized", "noise", "real")  # each is calibrated and evaluated apart
    short = DistillationConfig(cycles=4, generator_iterations=25, student_steps=25)  # a quarter of configs/distill.py
    c.distillation = ml_collections.ConfigDict(dataclasses.asdict(short))  # of recipe "distill"
    return c
