"""What a job shows on the console: progress bars, and one table at the end."""

import os
import sys

from tqdm import tqdm

from launch.config import QUIET
from launch.logs import LOG
from psaq_jax import distributed, progress, report


def show(results: dict) -> None:
    """The table of results and the line under it; the table goes into the log too."""
    LOG.info("\n%s", report.results_table(results))
    print(report.results_table(results, color()))
    print(report.summary_line(results))


def color() -> bool:
    """Whether the console shows colours: a terminal, and nobody has set NO_COLOR (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def bar(title: str):
    """A progress bar, or None under --quiet."""
    return None if QUIET.value or not distributed.is_first() else ProgressBar(title)


class ProgressBar:
    """A bar with an estimate of what is left: call it with (done, in all). What the first call tells was done before
    the estimate's clock starts: by an earlier run, or while programs were compiled.
    """

    def __init__(self, title: str):
        self.title, self.bar = title, None

    def __call__(self, done: int, total: int) -> None:
        if self.bar is None:
            self.bar = tqdm(total=total, initial=done, desc=self.title, leave=True, dynamic_ncols=True)
            progress.open_bars.add(self.bar)
        self.bar.update(done - self.bar.n)
        if done >= total:
            self.bar.close()
            progress.open_bars.discard(self.bar)
