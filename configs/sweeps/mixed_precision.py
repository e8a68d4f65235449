"""Mixed precision against uniform bits of the same size on the bundled model: five seeds of synthesized images.

    python -m launch.sweep --config=configs/sweeps/mixed_precision.py --workdir=DIR

"auto:4a8" has 4 bits a weight on average, given to the kernels where the logits need them; no label and no real image
tells it which. 100 iterations a seed (the paper's are 1,000), then six passes over 10,000 images of 28x28 pixels.

Time:     about 20 minutes on 2 CPU cores that others use too.
Expected: agreement with the float model, %, mean and standard deviation over seeds; in brackets what mixed precision
          gains seed by seed, mean and standard error. It gains in each of the five seeds in each row.
            w3a8  93.84 ± 1.07   auto:3a8  95.05 ± 1.24   (+1.21 ± 0.17; top-1 +0.48 ± 0.11)
            w4a8  95.77 ± 1.18   auto:4a8  96.02 ± 1.24   (+0.25 ± 0.09; top-1 +0.02 ± 0.06)
            w4a32 98.34 ± 0.00   auto:4a32 98.63 ± 0.14   (+0.29 ± 0.06; top-1 +0.02 ± 0.04)
          At 4 bits weights cost this model 0.2 points of top-1 in all, so there top-1 cannot tell the two apart.
"""

import ml_collections

from configs.sweeps import demo


def get_config() -> ml_collections.ConfigDict:
    c = demo.get_config()
    c.seeds = (0, 1, 2, 3, 4)
    c.synthesis.recipe = "default"
    c.synthesis.iterations = 100
    c.quantization.bits = ("w4a8", "auto:4a8", "w3a8", "auto:3a8", "w4a32", "auto:4a32")
    c.quantization.recipe = "paper"
    c.calibration = ("synthesized",)
    return c
