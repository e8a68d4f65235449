"""Mixed precision against uniform bits of the same size on the bundled model: five seeds of synthesized images.

    python -m launch.sweep --config=configs/sweeps/mixed_precision.py --workdir=DIR

"auto:4a8" has 4 bits a weight on average, given to the kernels where the logits need them; no label and no real image
tells it which. 100 iterations a seed (the paper's are 1,000), then six passes over 10,000 images of 28x28 pixels.

Time:     about 20 minutes on 2 CPU cores that others use too.
Expected: with these settings on 2,000 test images drawn at random, mean and standard deviation over the five seeds; in
          brackets what mixed precision gains seed by seed, mean and standard error.
            agreement with the float model, %    w3a8 93.41 ± 1.10    auto:3a8 94.96 ± 1.22    (+1.55 ± 0.08)
            top-1, % (float 90.10)               w3a8 87.58 ± 0.53    auto:3a8 88.27 ± 0.72    (+0.69 ± 0.16)
            squared error of the logits          w3a8 0.104 ± 0.018   auto:3a8 0.061 ± 0.019   (-0.043 ± 0.001)
            agreement with the float model, %    w4a8 95.28 ± 1.01    auto:4a8 95.55 ± 1.15    (+0.27 ± 0.12)
            top-1, %                             w4a8 89.04 ± 0.58    auto:4a8 89.04 ± 0.56    ( 0.00 ± 0.08)
            squared error of the logits          w4a8 0.042 ± 0.016   auto:4a8 0.039 ± 0.016   (-0.003 ± 0.001)
          At 3 bits every figure gains in each of the five seeds. At 4 bits the logits are closer in each seed, but
          top-1 cannot tell: weights cost this model a few tenths of a point there in all. Bits chosen by the logits'
          squared errors gain less agreement at 3 bits (+1.19 ± 0.14) and lose top-1 at 4 bits (-0.16 ± 0.04).
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
