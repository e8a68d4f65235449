"""Groups of synthesized images that are done, in files of a folder: what a restarted synthesis need not make again.

They are kept by number, so that the run may go on with another number of devices or processes.
"""

import pathlib
from collections.abc import Iterator

import numpy as np

from psaq_jax import distributed, resumption

# Groups from number "first" on: {"images": [groups, b, h, w, 3], "labels": [groups, b], term: [groups, iterations],
# "seconds": wall time of their loop, in this run and those before it that were killed}.
Part = dict[str, np.ndarray]


def first_groups(part: Part, count: int) -> Part:
    """The part without the groups behind the first `count`."""
    return {name: value if name in ("first", "seconds") else value[:count] for name, value in part.items()}


class FinishedGroups:
    """The finished groups of one synthesis; with several processes, in the folder of process 0, which alone writes."""

    def __init__(self, directory: pathlib.Path):
        self.directory = directory

    def keep(self, part: Part) -> None:
        if distributed.is_first():
            last = int(part["first"]) + len(part["images"])
            resumption.write_npz(self.directory / f"groups_{int(part['first']):08d}_{last:08d}.npz", part)

    def read(self, first: int = 0) -> Iterator[Part]:
        """What `keep` kept, in order, without a gap and each group once, from the part that holds group number `first`
        on.

        At a damaged part it ends, and what would come after is removed: it is made again, maybe in other parts.
        """
        parts, start = self._files(), first
        for i, (begin, end, path) in enumerate(parts):
            if begin == first or begin < first == start < end:
                part = resumption.read_npz(path)
                if part is None:
                    resumption.warn_damaged(path)
                    for *_, later in parts[i:]:
                        later.unlink()
                    return
                yield part
                first = end

    def drop(self, before: int) -> None:
        """Removes the parts whose groups all have a smaller number than `before`: they are safe elsewhere."""
        for _, end, path in self._files():
            if end <= before:
                path.unlink()

    def _files(self) -> list[tuple[int, int, pathlib.Path]]:
        """(first group, group after the last, file), in order."""
        number = "[0-9]" * 8
        paths = sorted(self.directory.glob(f"groups_{number}_{number}.npz"))
        return [(*map(int, path.stem.split("_")[1:]), path) for path in paths]
