"""Tables of text: in Markdown, and aligned for a console."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Table(NamedTuple):
    """A table with its title; the first `left` columns are words, the others figures; the note stands below."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1
    note: str = ""

    def plain(self) -> str:
        """As aligned lines, without title and note."""
        return plain(self.header, self.rows, self.left)

    def markdown(self) -> str:
        """As a Markdown table, without title and note."""
        return markdown(self.header, self.rows, self.left)


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """A Markdown table; the first `left` columns are words, the others figures. Cells are escaped."""
    rule = ["---" if i < left else "---:" for i in range(len(header))]
    lines = [[_escaped(cell) for cell in header], rule, *([_escaped(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plain(header: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """The same as aligned lines, without one at the end; control characters become "?"."""
    table = [list(map(one_line, row)) for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    sides = [str.ljust] * left + [str.rjust] * (len(header) - left)
    lines = [[side(cell, width) for side, cell, width in zip(sides, row, widths, strict=True)] for row in table]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join("  ".join(line).rstrip() for line in lines)


def figure(value: float | None) -> str:
    """A number with two decimals, or "-" where there is none."""
    return "-" if value is None else f"{value:.2f}"


def one_line(text) -> str:
    """Text of a checkpoint or file name, fit for a console: control characters become "?"."""
    return "".join(c if c.isprintable() else "?" for c in str(text))


def _escaped(cell: str) -> str:
    return one_line(cell).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
