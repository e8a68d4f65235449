"""What an artefact knows of the checkpoint that it was made from."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Provenance:
    """All are equal: what is known of its source makes no other model of it, and compiles nothing anew.

    Attributes:
      config: the fields of the source's own config.json; None: not looked at yet, saving the model does.
      sha256: {file of weights: hash}; empty where the source was out of reach or has changed.
      stamps: of the files that the float model was read from, see `tensors.file_stamps`.
    """

    config: Mapping[str, Any] | None = dataclasses.field(default=None, compare=False)
    sha256: Mapping[str, str] = dataclasses.field(default_factory=dict, compare=False)
    stamps: tuple[tuple[str, int, int], ...] = dataclasses.field(default=(), compare=False)
