"""Synthesis that survives being killed: the state of the wave under way (Orbax), and the waves that are done (npz).

A run is restarted by the same command and ends with the same bits, because everything random follows from
(seed, group, iteration) and a chunk always starts where a chunk would have started.
"""

import pathlib
import shutil
import signal
import sys
import time
from typing import NamedTuple

import numpy as np

from psaq_jax import files
from psaq_jax.errors import InputError


class WaveProgress(NamedTuple):
    """A wave under way, as arrays on the host."""

    wave: int
    iteration: int  # iterations done
    images: np.ndarray  # [groups, b, h, w, 3]
    moments: dict[str, np.ndarray]  # Adam's "count" [groups], "mu" and "nu" as images
    history: dict[str, np.ndarray]  # {term: [groups, iteration]}
    seconds: float  # wall time of these iterations, over all processes that ran some


class Checkpoints:
    """Checkpoints of one synthesis in a folder of its own."""

    def __init__(self, directory, every_seconds: float = 60.0):
        import orbax.checkpoint as ocp

        self._ocp, self.directory, self.every_seconds = ocp, pathlib.Path(directory).absolute(), every_seconds
        self._last, self._stopping = time.monotonic(), False
        options = ocp.CheckpointManagerOptions(max_to_keep=1, create=True)
        try:
            self._manager = ocp.CheckpointManager(self.directory / "running", options=options)
        except OSError as error:
            raise InputError(f"{directory}: cannot hold checkpoints ({error.strerror or error})") from None

    def restore(self) -> WaveProgress | None:
        """The wave that was under way, from its last whole checkpoint."""
        tree = self.restore_tree()
        if tree is None:
            return None
        history = {name: np.asarray(values) for name, values in tree["history"].items()}
        return WaveProgress(
            int(tree["wave"]), int(tree["iteration"]), np.asarray(tree["images"]),
            {name: np.asarray(values) for name, values in tree["moments"].items()}, history, float(tree["seconds"]),
        )  # fmt: skip

    def restore_tree(self) -> dict | None:
        """What `save_tree` saved last, as nested dictionaries of arrays; None at the start."""
        step = self._manager.latest_step()
        return None if step is None else self._manager.restore(step, args=self._ocp.args.StandardRestore())

    def due(self) -> bool:
        """Whether `every_seconds` have passed since the last save."""
        return time.monotonic() - self._last >= self.every_seconds

    def save(self, progress: WaveProgress, wait: bool = False) -> None:
        """Saves in the background; `wait`: returns when it is on the disk.

        Raises:
          InputError: no space or no right to write; the last whole checkpoint stays.
        """
        tree = progress._asdict()
        tree |= {name: np.asarray(tree[name]) for name in ("wave", "iteration", "seconds")}
        self.save_tree(progress.wave * 10**9 + progress.iteration, tree, wait)

    def save_tree(self, step: int, tree: dict, wait: bool = False) -> None:
        """As `save`, for any nested dictionary of arrays on the host; the last whole one counts. Steps must grow."""
        try:
            self._manager.save(step, args=self._ocp.args.StandardSave(tree))
            if wait:
                self._manager.wait_until_finished()
        except (OSError, ValueError) as error:
            raise InputError(
                f"{self.directory}: a checkpoint cannot be written ({error}); the last one is whole: free some space "
                "and start the same command again"
            ) from None
        self._last = time.monotonic()

    def save_on_sigterm(self) -> None:
        """Preemption sends SIGTERM: from now on it makes the synthesis save at the end of its chunk and leave."""

        def note(*_):
            self._stopping = True

        signal.signal(signal.SIGTERM, note)

    def stopping(self) -> bool:
        """Whether SIGTERM came."""
        return self._stopping

    def leave_if_stopping(self) -> None:
        """Ends the process, its checkpoint on the disk, if SIGTERM came (exit code 143, as shells say it)."""
        if self._stopping:
            self.close()
            print("stopped by SIGTERM; the same command goes on from here", file=sys.stderr)
            sys.exit(128 + signal.SIGTERM)

    def finish_wave(self, wave: int, arrays: dict[str, np.ndarray]) -> None:
        """Keeps a wave's images, labels and history for good."""
        files.write(self._wave_file(wave), lambda path: _save_npz(path, arrays))

    def finished_wave(self, wave: int) -> dict[str, np.ndarray] | None:
        """What `finish_wave` kept, or None."""
        path = self._wave_file(wave)
        if not path.exists():
            return None
        with np.load(path, allow_pickle=False) as archive:
            return dict(archive)

    def close(self, remove: bool = False) -> None:
        """Waits for saves under way; `remove` deletes the folder, when its images are safe elsewhere."""
        self._manager.wait_until_finished()
        self._manager.close()
        if remove:
            shutil.rmtree(self.directory, ignore_errors=True)

    def _wave_file(self, wave: int) -> pathlib.Path:
        return self.directory / f"wave_{wave:06d}.npz"


def _save_npz(path: pathlib.Path, arrays) -> None:
    with path.open("wb") as file:
        np.savez(file, **arrays)
