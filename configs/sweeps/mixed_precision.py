"""Mixed precision against uniform bits of the same size on the bundled model: five seeds of synthesized images.

    python -m launch.sweep --config=configs/sweeps/mixed_precision.py --workdir=DIR

"auto:4a8" has 4 bits a weight on average, given to the kernels where the logits need them; no label and no real image
tells it which. 100 iterations a seed (the paper's are 1,000), then six passes over 10,000 images of 28x28 pixels.

Time:     about 20 minutes on 2 CPU cores that others use too.
Expected: with these settings on 2,000 test images drawn at random, mean and standard deviation over the five seeds; in
          brackets what mixed precision gains seed by seed, mean and standard error. It gains in each of the five seeds.
            agreement with the float model, %      w3a8 93.41 ± 1.10    auto:3a8 94.96 ± 1.22    (+1.55 ± 0.08)
            squared error of the logits            w3a8 0.104 ± 0.018   auto:3a8 0.061 ± 0.019   (-0.043 ± 0.001)
            divergence of the probabilities        w3a8 0.056 ± 0.014   auto:3a8 0.038 ± 0.015   (-0.018 ± 0.001)
          Bits chosen by squared errors of the logits agree on 94.60 ± 1.20 (+1.19 ± 0.14): less, in each seed.
          On 10,000 test images bits chosen by squared errors gained, over these seeds, 0.48 ± 0.11 of top-1 at w3a8 and
          0.02 ± 0.06 at w4a8. At 4 bits weights cost this model 0.2 points in all, so there top-1 cannot tell.
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
