"""What results say of hardware and memory."""

import pathlib
import re
import subprocess
import sys

import numpy as np

from psaq_jax import machine
from tests import jobs


def test_a_cpu_is_named_with_its_cores():
    found = machine.describe_machine()["device"]
    assert re.fullmatch(r"\d+ x cpu \(\S.*, \d+ cores?\)", found), found
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists() and "model name" in cpuinfo.read_text():
        assert re.search(r"model name\s*: (.*)", cpuinfo.read_text())[1].strip() in found


def test_peak_memory_is_not_that_of_the_process_that_started_this_one():
    code = "from psaq_jax import machine; print(machine.peak_memory_bytes())"
    held = np.ones(2**27)  # 1 GiB
    ran = subprocess.run([sys.executable, "-c", code], check=True, **jobs.settings())
    assert 10**7 < int(ran.stdout) < held.nbytes
