"""Our own recipe on your own model: images of 200 iterations, recipe "default" for images and quantizer, no real image.

python -m launch.quantize --config=configs/default.py --workdir=DIR --config.model=MODEL --config.data=folder:DIR2

docs/accuracy.md shows what the iterations buy: the paper's 1,000 make better images for the paper's quantizer, not for
this one at 8 and 4 bits. Recipe "paper", noise and real images beside it: configs/demo.py.
"""

import ml_collections

from configs import demo
from launch.config import synthesis_fields


def get_config() -> ml_collections.ConfigDict:
    c = demo.get_config()
    c.synthesis = synthesis_fields(recipe="default", iterations=200)
    c.quantization.recipe = "default"
    c.calibration = ("synthesized",)
    return c
