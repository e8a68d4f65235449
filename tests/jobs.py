"""What the tests start jobs with, as users do: also killed ones, and several at once."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import safetensors.numpy

from tests import quick_compilation
from tests.golden_files import GOLDEN

ROOT = pathlib.Path(__file__).parent.parent
TINY = GOLDEN / "paper" / "vit"


def shallow(folder: pathlib.Path) -> pathlib.Path:
    """TINY's first block alone, saved in `folder` once: jobs do with it what they do with three, and trace a third."""
    saved = folder / "shallow"
    if not saved.exists():
        saved.mkdir()
        config = json.loads((TINY / "config.json").read_text())
        config["model_args"]["depth"] = 1
        (saved / "config.json").write_text(json.dumps(config))
        weights = safetensors.numpy.load_file(TINY / "model.safetensors")
        kept = {name: x for name, x in weights.items() if not name.startswith(("blocks.1.", "blocks.2."))}
        safetensors.numpy.save_file(kept, saved / "model.safetensors")
    return saved


def small_data(folder: pathlib.Path) -> str:
    """The spec of 20 labelled images of noise, of TINY's size, saved in `folder`."""
    images = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    np.savez(folder / "images.npz", images=images, labels=np.arange(20) % 10)
    return f"npz:{folder / 'images.npz'}"


def settings(cache: pathlib.Path | None = None) -> dict:
    """Of a job's process on the CPU, for `subprocess`.

    What these tests ask does not depend on how well code is optimized, so it is compiled in half the time.

    Args:
      cache: a folder for what it compiles, where it may be killed while it writes there.
    """
    flags = f"{os.environ['XLA_FLAGS']} {quick_compilation.FLAGS}"
    own = {} if cache is None else {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    environment = os.environ | own | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    return {"cwd": ROOT, "env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}


def launch(script: str, *arguments) -> subprocess.CompletedProcess:
    """Runs `python -m launch.SCRIPT` with these arguments to its end."""
    return subprocess.run([sys.executable, "-m", f"launch.{script}", *map(str, arguments)], timeout=600, **settings())


def free_port(host: str = "127.0.0.1") -> int:
    """A port for process 0; skips the test where this machine has no such address, as without IPv6."""
    try:
        with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as found:
            return found.getsockname()[1]
    except OSError as error:
        pytest.skip(f"{host}: {error}")


def wait_until_empty(folder: pathlib.Path, pattern: str = "psaq_jax-*") -> None:
    """Until nothing of that name is there: the temporary folders of a process that ended at once go after it."""
    deadline = time.monotonic() + 60
    while found := list(folder.glob(pattern)):
        assert time.monotonic() < deadline, found
        time.sleep(0.01)
