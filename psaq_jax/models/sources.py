"""Where a checkpoint is: a local directory, one that the package ships, or the hub and its cache."""

import os
import pathlib
import re

from psaq_jax.errors import InputError

ASSETS = pathlib.Path(__file__).parent.parent / "assets"
CONFIG, PREPROCESSOR, WEIGHTS = "config.json", "preprocessor_config.json", "model.safetensors"
PROCESSOR = "processor_config.json"  # where transformers looks for the preprocessor too
INDEX = "model.safetensors.index.json"
DOWNLOADED = (CONFIG, PREPROCESSOR, PROCESSOR, WEIGHTS, "model-*.safetensors", INDEX)


def find_checkpoint(source: str, revision: str | None = None) -> pathlib.Path:
    """The local directory of a source; a hub id is downloaded (config, preprocessor and safetensors alone).

    Args:
      source: a directory, its ~ expanded, "bundled:NAME" or a hub id. A directory goes before a hub id of its name.
      revision: branch, tag or commit of a hub id.
    Raises:
      InputError: nothing of this name, here or on the hub.
    """
    if source.startswith("bundled:"):
        if revision:
            raise InputError(f"revision is {revision!r}, model {source!r} is bundled; only hub ids have revisions")
        bundled = {f"bundled:{path.parent.name}": path.parent for path in sorted(ASSETS.glob(f"*/{CONFIG}"))}
        if source not in bundled:
            raise InputError(f"model {source!r} is not bundled; bundled are {', '.join(bundled)}")
        return bundled[source]
    source = os.path.expanduser(source)
    if os.path.isdir(source):
        if revision:
            raise InputError(f"revision is {revision!r}, model {source!r} is a directory; only hub ids have revisions")
        return pathlib.Path(source)
    if os.path.exists(source):
        raise InputError(f"model {source!r} is a file, expected a directory with config.json and {WEIGHTS}")
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", source, re.ASCII):
        raise InputError(f"model {source[:200]!r}: no such directory; give a directory or a hub id (owner/name)")
    return _download(source, revision)


def _download(source: str, revision: str | None) -> pathlib.Path:
    import huggingface_hub

    try:
        path = huggingface_hub.snapshot_download(source, revision=revision, allow_patterns=list(DOWNLOADED))
    except Exception as error:  # the hub's library raises its own, its HTTP client's and the operating system's errors
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InputError(
            f"model {source!r}: no such directory, and the Hugging Face hub could not give it "
            f"({reason[:300]}); check the name, or download it elsewhere and give the directory"
        ) from None
    return pathlib.Path(path)
