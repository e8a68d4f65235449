"""Synthesis that survives being killed: the state of the wave under way (Orbax); `groups` are those that are done.

A run is restarted by the same command and ends with the same bits, because everything random follows from
(seed, group, iteration) and a chunk always starts where a chunk would have started. All of it has a checksum; what a
disk has damaged is dropped and made again.
"""

import contextlib
import dataclasses
import errno
import logging
import os
import pathlib
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import jax
import numpy as np

from psaq_jax import checksums, distributed, files, resumption
from psaq_jax.errors import InputError
from psaq_jax.progress import say
from psaq_jax.synthesis.finished_groups import FinishedGroups
from psaq_jax.workdir import keep_settings


class WaveProgress(NamedTuple):
    """A wave under way, of all processes, as arrays on the host."""

    first: int  # number of its first group
    iteration: int  # iterations done
    seconds: float  # wall time of these iterations, in this run and those before it
    arrays: dict[str, np.ndarray]  # [groups, ...] "variables", Adam's "count", "mu", "nu"; [groups, iteration] a term


class Checkpoints:
    """Checkpoints of one synthesis, or of a distillation, which has no `groups`, in a folder of its own; with several
    processes, in that of process 0.
    """

    def __init__(self, directory: str | os.PathLike, every_seconds: float = 60.0):
        self.directory, self.every_seconds = pathlib.Path(directory).absolute(), every_seconds
        self.groups = FinishedGroups(self.directory)
        self._last, self._signal = time.monotonic(), 0
        try:
            self._manager = self._open() if distributed.is_first() else None
        except OSError as error:
            found = f"{directory}: cannot hold checkpoints ({error.strerror or error})"
            raise InputError(f"{found}; choose another folder") from None

    def _open(self):
        import orbax.checkpoint as ocp

        logging.getLogger("absl").addFilter(_not_orbax)  # it prints tracebacks of what it raises as well
        (self.directory / "running").mkdir(parents=True, exist_ok=True)
        options = ocp.CheckpointManagerOptions(max_to_keep=1)
        if distributed.count() > 1:
            alone = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0})
            options = dataclasses.replace(options, create=False, multiprocessing_options=alone)
        return ocp.CheckpointManager(self.directory / "running", options=options)

    def belong_to(self, settings: Mapping) -> None:
        """Notes what the states depend on.

        Raises:
          InputError: the folder holds states of other settings.
        """
        if self._manager is not None:
            keep_settings(self.directory / "settings.json", settings, "holds checkpoints of", "choose another folder")

    def restore(self, first: int, groups: int) -> WaveProgress | None:
        """The wave of `groups` groups from number `first` on, from its last whole checkpoint; None: it has none.

        The checkpoint of another wave is removed: nobody needs it, and Orbax saves nothing of a smaller step.
        """
        tree = distributed.from_first(self.restore_tree())
        if tree is None:
            return None
        if tree["first"] != first or len(tree["variables"]) != groups:
            self.forget_tree()
            return None
        arrays = {name: np.asarray(array) for name, array in tree.items()}
        _, iteration, seconds = (arrays.pop(name).item() for name in ("first", "iteration", "seconds"))
        return WaveProgress(first, iteration, seconds, arrays)

    def restore_tree(self) -> dict | None:
        """What `save_tree` saved last, as nested dictionaries of arrays; None: there is nothing, or it is damaged.

        Raises:
          TryAgain: the system cannot read it now (a failing network disk, no right to); it stays.
        """
        for step in sorted(self._steps(), reverse=True):  # two, where a kill kept the older one from its removal
            import orbax.checkpoint as ocp  # not where there is nothing to restore, as in all processes but the first

            path = self.directory / "running" / str(step)
            try:
                tree = checksums.remove(self._manager.restore(step, args=ocp.args.StandardRestore()))
            except Exception as error:  # Orbax has dozens of kinds for damaged files, its parsers' and its storage's
                if _is_of_the_system(error):
                    raise resumption.unreadable(path, _reason(error)) from None
                tree = None
            if tree is not None:
                return tree
            resumption.warn_damaged(path)
            self._manager.delete(step)
        return None

    def forget_tree(self) -> None:
        """Removes what `save_tree` saved, so that steps may begin anew."""
        for step in self._steps():
            self._manager.delete(step)

    def _steps(self) -> list[int]:
        return list(self._manager.all_steps()) if self._manager else []

    def meet(self, unfinished: bool, progress: Callable[[], WaveProgress]) -> None:
        """Between two chunks: saves if it is time or any process is to stop, and then leaves."""
        stopping, due = distributed.any_of(self.stopping(), unfinished and self.due())
        if stopping or due:
            self.save(progress())
        if stopping:
            self._leave()

    def due(self) -> bool:
        """Whether `every_seconds` have passed since the last save."""
        return time.monotonic() - self._last >= self.every_seconds

    def save(self, progress: WaveProgress) -> None:
        """Saves in the background.

        Raises:
          InputError: no space or no right to write; the last whole checkpoint stays.
        """
        numbers = {"first": progress.first, "iteration": progress.iteration, "seconds": progress.seconds}
        tree = progress.arrays | {name: np.asarray(number) for name, number in numbers.items()}
        self.save_tree(progress.first * 10**9 + progress.iteration, tree)

    def save_tree(self, step: int, tree: dict) -> None:
        """As `save`, for any nested dictionary of arrays on the host; the last whole one counts. Steps must grow."""
        self._last = time.monotonic()
        if self._manager is None:
            return
        import orbax.checkpoint as ocp

        with self._one_line():
            files.check_space(self.directory, sum(leaf.nbytes for leaf in jax.tree.leaves(tree)))
            self._manager.save(step, args=ocp.args.StandardSave(checksums.add(tree)))

    @contextlib.contextmanager
    def _one_line(self):
        try:
            yield
        except (OSError, ValueError) as error:
            raise InputError(
                f"{self.directory}: a checkpoint cannot be written ({_reason(error)}); the last one is whole: "
                "free some space and start the same command again"
            ) from None

    def stop(self, number: int, frame=None) -> None:
        """Handles a signal: the job saves at the end of its chunk and leaves. A second Ctrl-C ends it at once."""
        self._signal = number
        if number == signal.SIGINT:
            print("\nstopping at the end of this chunk; Ctrl-C again stops at once", file=sys.stderr)
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def stopping(self) -> bool:
        """Whether a signal came."""
        return bool(self._signal)

    def leave_if_stopping(self) -> None:
        """If a signal came to any process, ends all, their checkpoint on the disk (143 or 130, as shells say it)."""
        if distributed.any_of(self.stopping())[0]:
            self._leave()

    def _leave(self) -> None:
        self.close()
        number = signal.Signals(self._signal or signal.SIGTERM)
        if distributed.is_first():
            say(f"stopped by {number.name}; the same command goes on from here")
        sys.exit(128 + number)

    def close(self) -> None:
        """Waits for saves under way."""
        if self._manager is not None:
            with self._one_line():
                self._manager.wait_until_finished()
            self._manager.close()
            self._manager = None


@contextlib.contextmanager
def open_checkpoints(directory, every_seconds: float = 60.0) -> Iterator[Checkpoints]:
    """Checkpoints of one job. SIGTERM, which preemption sends, and Ctrl-C end it with its state on the disk, unless
    they are ignored as under nohup; after the block they do what they did before. One that came as late as that ends
    the job then.
    """
    checkpoints = Checkpoints(directory, every_seconds)
    heard = [n for n in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, checkpoints.stop) for number in heard}
    try:
        yield checkpoints
        checkpoints.close()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    checkpoints.leave_if_stopping()  # a signal from here on does what it did before


def _reason(error: Exception) -> str:
    """The system's words out of a long message of the checkpoint library."""
    code = _code(error)
    return os.strerror(code) if code else str(error)


def _code(error: Exception) -> int | None:
    """The system's number of an error, which the checkpoint library's storage hides in the message."""
    found = re.search(r"\[os_error_code='(\d+)'", str(error))
    return int(found[1]) if found else getattr(error, "errno", None)


def _is_of_the_system(error: Exception) -> bool:
    """Whether the system failed to read what may well be whole; what is missing is not."""
    damaged = (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
    return isinstance(error, MemoryError) or _code(error) not in damaged


def _not_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname
