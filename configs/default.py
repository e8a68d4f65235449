"""Our own recipe on your own model: images of 200 iterations, recipe "default" for images and quantizer, no real image.

python -m launch.quantize --config=configs/default.py --workdir=DIR --config.model=MODEL --config.data=folder:DIR2

README.md shows what the iterations buy, and what a density of wider kernels does, in which nearly all pairs of patches
have a gradient: 200 iterations are enough then. Recipe "paper", noise and real images beside it: configs/demo.py.
"""

import ml_collections

from configs import demo
from launch.config import synthesis_fields


def get_config() -> ml_collections.ConfigDict:
    c = demo.get_config()
    c.synthesis = synthesis_fields(recipe="default", iterations=200, bandwidth=0.05)
    c.quantization.recipe = "default"
    c.calibration = ("synthesized",)
    return c
