"""What `launch.benchmark` and `launch.latency` time, and `launch.compare` takes beside sources: models of any source,
and published shapes with random weights.
"""

from collections.abc import Iterable

import jax
import jax.numpy as jnp

from psaq_jax.errors import InputError
from psaq_jax.models.configs import read_architecture
from psaq_jax.models.loading import load_model
from psaq_jax.models.model import Model
from psaq_jax.models.preprocessing import Preprocessing
from psaq_jax.models.preprocessing_configs import IMAGENET_MEAN, IMAGENET_STD
from psaq_jax.synthesis.config import MOST

SHAPES = {  # at 224 px, by timm's names
    "deit_tiny": "deit_tiny_patch16_224",
    "deit_small": "deit_small_patch16_224",
    "deit_base": "deit_base_patch16_224",
    "swin_tiny": "swin_tiny_patch4_window7_224",
    "swin_small": "swin_small_patch4_window7_224",
}
LARGEST_BATCH = MOST["group_size"]


def case_model(name: str) -> Model:
    """A source of `load_model`, or a published shape with random weights.

    Their values matter to the speed in one place: random attention is flat, so similarities span little, and the
    entropy's gradient takes up to five times the exponentials on a CPU that a trained model's takes.
    """
    if name not in SHAPES:
        return load_model(name)
    found = read_architecture({"architecture": SHAPES[name]}, name)
    params = jax.jit(found.module.init)(jax.random.key(0), jnp.zeros((1, 224, 224, 3)))["params"]
    preprocessing = Preprocessing((224, 224), IMAGENET_MEAN, IMAGENET_STD)
    return Model(params, found.module, found.labels, preprocessing, name)


def check_cases(cases: tuple[str, ...]) -> None:
    if not cases:
        raise InputError(f"cases is empty, expected some of {', '.join(SHAPES)}, or sources of models")


def check_loadable(cases: Iterable[str]) -> None:
    """Raises InputError where a model cannot be loaded: before, not after, the others are measured."""
    for name in cases:
        if name in SHAPES:
            continue
        try:
            load_model(name)
        except InputError as error:
            raise InputError(f"{error}; cases are sources of models, or {', '.join(SHAPES)}") from None
