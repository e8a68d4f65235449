"""The demo: a small ViT quantized as PSAQ-ViT does it and by our own recipe.

Each is calibrated on synthesized images, on noise and on real images.

bash launch/demo.sh        (which is: python -m launch.quantize --config=configs/demo.py --workdir=demo)
"""

import ml_collections

from launch.config import recipe_fields, synthesis_fields


def get_config() -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.model = "bundled:fashion_mnist_vit"  # hub id, directory in Hugging Face's or timm's layout, or bundled:NAME
    c.image_size = 0  # pixels to run the model at; 0: the checkpoint's own
    c.revision = ""  # branch, tag or commit of a hub id
    c.data = "bundled:fashion_mnist"  # bundled:, tfds:, folder: or npz:; "" for none: agreement replaces accuracy
    c.seed = 0  # of noise, labels, jitter and the choice of real images
    c.data_errors = "stop"  # at a broken image, or "skip" it
    c.data_workers = 0  # processes that decode images
    c.class_index = ""  # of folder: data: a JSON file with the order of the class folders
    c.labels_file = ""  # of a flat folder: its labels
    c.batch_size = 250  # images a pass of the evaluation
    c.dtype = "float32"  # of the synthesis' passes: float32 or bfloat16
    c.synthesis = synthesis_fields()  # the paper's
    c.quantization = ml_collections.ConfigDict()
    c.quantization.bits = ("w8a8", "w4a8")  # w2 to w8 or auto:AVERAGE, a2 to a8 or a32 (floats)
    c.quantization.recipe = "paper,default"  # names separated by commas; "default-gptq" leaves an ingredient out
    c.quantization.options = recipe_fields()  # of recipe "default"
    c.calibration = ("synthesized", "noise", "real")  # each is calibrated and evaluated apart
    return c
