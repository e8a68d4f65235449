"""Latency and memory of float32, bfloat16, simulated and integer execution, on whatever device jax finds.

python -m launch.latency --config=configs/latency.py --workdir=DIR [--cases=deit_tiny,ARTEFACT]
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.cases = ("bundled:fashion_mnist_vit", "deit_tiny")  # sources, deit_tiny and others, or a saved artefact
    c.batch_sizes = (1, 32)
    c.bits = "w8a8"  # of cases that are not artefacts; recipe "paper"
    c.repeats = 7  # interleaved rounds; the table shows medians, minima and maxima
    return c
