"""How long work tells how far it is."""

from collections.abc import Callable

Progress = Callable[[int, int], None]  # called with (done, in all)
Bars = Callable[[str], Progress | None]  # title -> what is called
