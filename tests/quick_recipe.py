"""Recipe "default" without what takes long to compile: for tests of what is done with its models, not of the recipe."""

from psaq_jax.quantization.recipes import read_recipe

OFF = (
    "close_ups", "token_importance", "rotate", "bases", "fold_norms", "fold_attention", "fold_activations",
    "search_weight_scales", "gptq", "coordinate_descent", "two_sided", "reconstruct",
)  # fmt: skip
NAME = "-".join(("default", *OFF))
QUICK = read_recipe(NAME)[1]
ROUNDING = dict.fromkeys(("gptq", "coordinate_descent", "two_sided"), True)  # to switch on again
FLAGS = tuple(f"--config.quantization.options.{name}=False" for name in OFF)
