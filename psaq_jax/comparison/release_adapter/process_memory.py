"""The memory that a process took; standard library alone, because both sides of the comparison measure with it."""

import pathlib
import resource
import sys


def peak_process_memory() -> int:
    """Bytes of resident memory that this process has had at most so far."""
    try:  # on Linux ru_maxrss counts the process that started this one too
        status = pathlib.Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) * 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
