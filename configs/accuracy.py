"""Accuracy over five seeds; the tables of README.md come from here.

    python -m launch.sweep --config=configs/accuracy.py --workdir=DIR
    python -m launch.sweep --config=configs/accuracy.py:ablation --workdir=DIR2

The first: both recipes and default with block reconstruction, five bit-widths, synthesized images against noise and as
many real ones. The second: recipe "default" without each of its ingredients in turn, on synthesized images.
Other models: --config.models='("DIR",)' --config.data=npz:FILE. The first and the last layer keep 8 bits in recipe
"default" and its variants, as in the papers that it follows; in "paper" they don't.
"""

import ml_collections

from configs.sweeps import demo
from psaq_jax.quantization.recipes import WITHOUT

INGREDIENTS = tuple(name for name in WITHOUT if name not in ("first_last_8bit", "reconstruct"))


def get_config(table: str = "recipes") -> ml_collections.ConfigDict:
    if table not in ("recipes", "ablation"):
        raise ValueError(f"configs/accuracy.py:{table} is unknown, known are recipes and ablation")
    c = demo.get_config()
    c.seeds = (0, 1, 2, 3, 4)
    c.synthesis.recipe = "default"
    c.quantization.bits = ("w8a8", "w6a6", "w4a8", "w4a4", "w3a3")
    c.quantization.recipe = "paper,default,default+reconstruct"
    if table == "ablation":
        c.quantization.recipe = ",".join(["default", *(f"default-{name}" for name in INGREDIENTS)])
        c.quantization.bits = ("w8a8", "w4a8", "w4a4", "w3a3")
        c.calibration = ("synthesized",)
    return c
