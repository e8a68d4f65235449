"""What a run ran on: devices, versions, and the memory that it took."""

import contextlib
import os
import pathlib
import platform
from importlib import metadata

import jax

import psaq_jax
from psaq_jax.comparison.release_adapter.process_memory import peak_process_memory


def describe_machine() -> dict:
    """{"device", "versions"} of this process."""
    device = f"{jax.device_count()} x {jax.devices()[0].platform} ({device_name()})"
    return {
        "device": device,
        "versions": {"python": platform.python_version()} | versions("jax", "jaxlib", "flax", "optax", "numpy"),
    }


def versions(*packages: str) -> dict[str, str]:
    """{package: version}, this one's first; without those that are not installed."""
    found = {"psaq_jax": psaq_jax.__version__}  # which may run from a clone that is not installed
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def device_name() -> str:
    """Of the first device; see `processor`."""
    device = jax.devices()[0]
    return processor() if device.platform == "cpu" else device.device_kind


def processor() -> str:
    """The CPU's name, as far as it is known, and how many of its cores this process may use."""
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} core{'s' * (cores != 1)}"


def peak_memory_bytes() -> int:
    """The most memory so far: of the first device where it says so (GPU, TPU), else of this process."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    return statistics.get("peak_bytes_in_use") or peak_process_memory()
