"""Speed of the synthesis step; the table of README.md comes from here.

python -m launch.benchmark --config=configs/benchmark.py --workdir=DIR [--cases=deit_tiny,deit_small]
"""

import ml_collections
from ml_collections import config_dict


def get_config() -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.cases = ("bundled:fashion_mnist_vit", "deit_tiny", "deit_small")  # deit_base, swin_tiny and swin_small too
    c.batch_size = 32  # images of one group
    c.dtype = "float32"  # of the model's passes: float32 or bfloat16
    c.repeats = 5  # interleaved; the table shows medians, minima and maxima
    c.fused_attention = config_dict.placeholder(str)  # "cudnn" on NVIDIA's GPUs, of bfloat16: see SynthesisConfig
    c.topology = ""  # TPU chips to compile for and not to time, such as "v5e:2x2"; they need not be there
    return c
