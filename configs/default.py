"""Our own recipe on your own model: images of 200 iterations, recipe "default" for images and quantizer, no real image.

python -m launch.quantize --config=configs/default.py --workdir=DIR --config.model=MODEL --config.data=folder:DIR2

docs/accuracy.md shows what the iterations buy: by frequencies 200 calibrate as well as the paper's 1,000; pixels need
more. Recipe "paper", noise and real images beside it: configs/demo.py.
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
