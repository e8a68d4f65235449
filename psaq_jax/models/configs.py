"""A checkpoint's config.json -> the Flax module and the name table that fit it."""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from psaq_jax.errors import InputError
from psaq_jax.models import configs_huggingface, configs_timm
from psaq_jax.models.architecture import Architecture, check_geometry
from psaq_jax.models.fields import LONGEST_LABELS


def read_architecture(
    config: Mapping[str, Any], source: str, tensor_names: Callable[[], Iterable[str]] = tuple
) -> Architecture:
    """Chooses the family: timm's config.json has `architecture`, Hugging Face's `architectures`.

    Args:
      source: for messages.
      tensor_names: gives the names in the checkpoint; asked only for timm's config, which leaves the layout open
        (Swin: timm's or the original release's; any: under transformers' wrapper or not).
    Raises:
      InputError: an architecture that is not supported, or a field that is missing or impossible.
    """
    if "architecture" in config:
        architecture = configs_timm.read(config, source, tensor_names)
    else:
        architecture = configs_huggingface.read(config, source)
    check_geometry(architecture.module, f"{source}: config.json")
    size = len(json.dumps(architecture.labels))
    if size > LONGEST_LABELS:
        raise InputError(
            f"{source}: config.json has {size} bytes of labels, expected at most {LONGEST_LABELS}; shorten them"
        )
    return architecture
