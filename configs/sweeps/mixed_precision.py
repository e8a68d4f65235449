"""Mixed precision against uniform bits of the same size on the bundled model: five seeds of synthesized images.

    python -m launch.sweep --config=configs/sweeps/mixed_precision.py --workdir=DIR

"auto:4a8" has 4 bits a weight on average, given to the kernels where the logits need them; no label and no real image
tells it which. 100 iterations a seed (the paper's are 1,000), then four passes over 10,000 images of 28x28 pixels.
"""

import ml_collections

from configs.sweeps import demo


def get_config() -> ml_collections.ConfigDict:
    c = demo.get_config()
    c.seeds = (0, 1, 2, 3, 4)
    c.synthesis.recipe = "default"
    c.synthesis.iterations = 100
    c.quantization.bits = ("w4a8", "auto:4a8", "w3a8", "auto:3a8")
    c.quantization.recipe = "paper"
    c.calibration = ("synthesized",)
    return c
