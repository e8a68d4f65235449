"""The tables of docs/accuracy.md: accuracy with its deviation over seeds, and the wall time of every cell.

    python -m launch.sweep --config=configs/accuracy.py --workdir=DIR
    python -m launch.sweep --config=configs/accuracy.py:ablation --workdir=DIR2
    python -m launch.sweep --config=configs/accuracy.py:hard --workdir=DIR3
    python -m launch.sweep --config=configs/accuracy.py:backbone --workdir=DIR4 --config.models='("MODEL",)' \\
        --config.data=npz:FILE
    for n in 100 200 1000; do
      for h in 0.01 0.05; do
        python -m launch.sweep --config=configs/accuracy.py:iterations --workdir=DIR5/$n-$h \\
            --config.synthesis.iterations=$n --config.synthesis.bandwidth=$h
      done
    done
    python -m launch.curve --workdir=DIR5

recipes   The bundled model: four recipes, five bit-widths, synthesized images, noise and as many real ones, five seeds.
ablation  Recipe "default", then without reconstruction, then also without each other ingredient, on synthesized images.
hard      Recipe "default" on the bundled model and on its hard copy, which computes the same with outlier channels (a
          small model has none), side by side; each has images of its own.
backbone  The first table, two seeds, for any model at 112 pixels (Swin: --config.image_size=0). MODEL is a hub id or a
          directory with a classifier for the data; FILE holds `images`, uint8, and `labels`. Also: folder:DIR.
iterations What the iterations of the synthesis buy, recipes "paper" and "default".

Time:     on 2 CPU cores about 6 hours, 2, half an hour and, for a ViT-S with 1,000 test images, a day. Estimated from
          short runs on busy cores, not measured. Measured, beside other work: 75 minutes for recipes "paper" and
          "default" of the first table, 25 minutes for each count of iterations.
Expected: docs/accuracy.md.
Each goes on after being killed. The first and the last layer keep 8 bits in recipe "default" and what is made of it, as
in the papers that it follows; in "paper" they don't. "distill" trains what "default" makes, for a quarter of the
student's steps in configs/distill.py and half of the generator's; synthesized images alone give it a generator.
"""

import ml_collections

from configs.sweeps import demo
from psaq_jax.errors import InputError
from psaq_jax.quantization.recipes import WITH, WITHOUT

TABLES = ("recipes", "ablation", "hard", "backbone", "iterations")
INGREDIENTS = tuple(name for name in WITHOUT if name == "bases" or name not in ("first_last_8bit", *WITH))

REST = "default-reconstruct"  # reconstruction makes up for much of what another ingredient would have done


def get_config(table: str = "recipes") -> ml_collections.ConfigDict:
    if table not in TABLES:
        raise InputError(f"configs/accuracy.py:{table} is unknown, known are {', '.join(TABLES)}")
    c = demo.get_config()
    c.seeds = (0, 1, 2, 3, 4)
    c.synthesis.recipe = "default"
    c.quantization.bits = ("w8a8", "w6a6", "w4a8", "w4a4", "w3a3")
    c.quantization.recipe = "paper,default-reconstruct,default,distill"
    if table == "ablation":
        c.quantization.recipe = ",".join(["default", REST, *(f"{REST}-{name}" for name in INGREDIENTS)])
        c.quantization.bits = ("w8a8", "w4a8", "w4a4", "w3a3")
        c.calibration = ("synthesized",)
    elif table == "hard":
        c.models = ("bundled:fashion_mnist_vit", "hard:bundled:fashion_mnist_vit")
        c.quantization.recipe = "default"
        c.calibration = ("synthesized",)
    elif table == "iterations":
        c.quantization.recipe = "paper,default"
        c.quantization.bits = ("w8a8", "w4a8", "w4a4", "w3a3")
        c.calibration = ("synthesized",)
    elif table == "backbone":
        c.models = ()  # --config.models='("MODEL",)'
        c.data = ""  # --config.data=npz:FILE
        c.image_size = 112
        c.seeds = (0, 1)
        c.batch_size = 50
        c.synthesis.iterations = 200
        c.distillation.batch_size = 8
    return c
