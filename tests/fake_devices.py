"""A script in a process of its own, with so many fake CPU devices."""

import os
import pathlib
import subprocess
import sys

import numpy as np

ROOT = pathlib.Path(__file__).parent.parent


def run(script: str, devices: int, path, more_flags: str = "") -> dict[str, np.ndarray]:
    """Runs `script` with arguments (devices, path); returns the arrays that it leaves in the npz file `path`.

    Args:
      more_flags: of XLA.
    """
    flags = f"{os.environ['XLA_FLAGS']} {more_flags} --xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script, str(devices), str(path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    with np.load(path) as archive:
        return dict(archive)
