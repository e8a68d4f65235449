"""Devices in a row: images, batches and groups are shared out over them, all else lies on each of them."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


class Placement(NamedTuple):
    """Where arrays lie on some devices."""

    shares: NamedSharding  # the first axis over the devices
    everywhere: NamedSharding


def over(devices: Sequence[jax.Device]) -> Placement:
    """The placement on these devices, by a mesh of the one axis `data`."""
    mesh = Mesh(np.asarray(devices), ("data",))
    return Placement(NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec()))


def over_divisors(devices: Sequence[jax.Device], size: int) -> Placement:
    """The placement on the most of the devices that divide a batch of that size."""
    return over(devices[: max(n for n in range(1, len(devices) + 1) if size % n == 0)])
