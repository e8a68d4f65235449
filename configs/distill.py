"""Distillation without data (PSAQ-ViT V2) of the bundled model at four and three bits.

python -m launch.distill --config=configs/distill.py --workdir=DIR

docs/accuracy.md has what a quarter of it brings, on this model and on DINOv2 ViT-S/14
(--config.distillation.batch_size=8). Half of its cycles took 104 s a pair of bit-widths on one core of an Intel Xeon.
"""

import dataclasses

import ml_collections

from launch.config import recipe_fields, synthesis_fields
from psaq_jax.distillation.config import DistillationConfig


def get_config() -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.model = "bundled:fashion_mnist_vit"  # hub id, directory in Hugging Face's or timm's layout, or bundled:NAME
    c.image_size = 0  # pixels to run a ViT, DeiT or DINOv2 at; 0: the checkpoint's own
    c.revision = ""  # branch, tag or commit of a hub id
    c.data = "bundled:fashion_mnist"  # for the evaluation alone; "": agreement on synthesized images
    c.seed = 0  # of images, labels, jitter and the order of the images
    c.data_errors = "stop"  # at a broken image, or "skip" it
    c.data_workers = 0  # processes that decode images
    c.class_index = ""  # of folder: data: a JSON file with the order of the class folders
    c.labels_file = ""  # of a flat folder: its labels
    c.batch_size = 250  # images a pass of the evaluation
    c.dtype = "float32"  # of the passes of teacher, student and synthesis: float32 or bfloat16
    c.synthesis = synthesis_fields(recipe="default")  # the images that the student starts on, and the generator's
    c.quantization = ml_collections.ConfigDict()
    c.quantization.bits = ("w4a4", "w3a3")  # w2 to w8 or auto:AVERAGE, a2 to a8 or a32 (floats)
    c.quantization.recipe = "default"  # of the student's start
    c.quantization.options = recipe_fields()  # of recipe "default"
    c.calibration = ("synthesized",)
    c.distillation = ml_collections.ConfigDict(dataclasses.asdict(DistillationConfig()))
    return c
