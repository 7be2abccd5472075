"""Text for the terminal: tables that fit its width, and lines on the progress."""

from collections.abc import Iterator, Sequence
from textwrap import wrap

from rich.console import Console
from rich.text import Text

from dise_experiments.common.table import Table

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)

_GAPS = (2, 1)  # spaces between columns; one space if the table then fits the width
_INDENT = "  "  # of the second and further lines of a cell


def say(line: str) -> None:
    """Print a line on the progress, on stderr."""
    for part in _wrapped(line, errors.width):
        errors.print(part, style="dim", soft_wrap=True, markup=False)


def print_lines(lines: Sequence[str]) -> None:
    """Print lines of results, on stdout, whole whatever the width."""
    for line in lines:
        console.print(line, soft_wrap=True, markup=False)


def print_table(table: Table) -> None:
    """Print a table, on stdout."""
    for part in _wrapped(table.title, console.width):
        console.print(part, style="bold", soft_wrap=True, markup=False)
    for block in blocks(table, console.width):
        console.print(Text("\n".join(block) + "\n"), soft_wrap=True)
    if table.note:
        for note in table.note.splitlines():
            console.print("\n".join(_wrapped(note, console.width)), style="dim", soft_wrap=True, markup=False)
        console.print()


def blocks(table: Table, width: int) -> Iterator[list[str]]:
    """The lines of a table: one block if the columns fit the width, else as many blocks of columns as it requires.

    Each block starts with the first column and the text columns of the block before, which identify the rows. Words are
    never broken: a width smaller than these columns beside one other is exceeded.
    """
    columns = [_Column(name, [row[i] for row in table.rows], first=i == 0) for i, name in enumerate(table.header)]
    for gap in _GAPS:
        if _least(columns, gap) <= width:
            yield _lines(columns, width, gap)
            return
    block, rest = columns[:1], columns[1:]
    while rest:
        block.append(rest.pop(0))
        while rest and _least([*block, rest[0]], _GAPS[0]) <= width:
            block.append(rest.pop(0))
        yield _lines(block, width, _GAPS[0])
        block = [column for column in block if column.text]


class _Column:
    """A column and the widths that it can have: numbers stay on one line, text may be wrapped."""

    def __init__(self, name: str, cells: Sequence[str], *, first: bool) -> None:
        self.name, self.cells = name, cells
        self.text = first or any(cell[:1].isalpha() for cell in cells)
        self.full = self.least = max(map(len, [*name.split(), *cells, "-"]))
        if self.text:
            words = [*name.split(), *(word for cell in cells for word in _indented(cell)), "-"]
            self.least = max(map(len, words))

    def lines(self, text: str, width: int, indent: str = _INDENT) -> list[str]:
        """The lines of a cell or a header, of this width."""
        return [line.ljust(width) if self.text else line.rjust(width) for line in _wrapped(text, width, indent)]


def _lines(columns: Sequence[_Column], width: int, gap: int) -> list[str]:
    """A block's lines; text columns share the width that is left."""
    widths = [column.least for column in columns]
    gaps = gap * (len(columns) - 1)
    while sum(widths) + gaps < width:
        short = [column.full - w for column, w in zip(columns, widths, strict=True)]
        if max(short) == 0:
            break
        widths[short.index(max(short))] += 1
    heads = [column.lines(column.name, w, "") for column, w in zip(columns, widths, strict=True)]
    height = max(map(len, heads))
    lines = _joined([[""] * (height - len(head)) + head for head in heads], widths, gap)
    lines.append("─" * (sum(widths) + gaps))
    for row in zip(*(column.cells for column in columns), strict=True):
        cells = [c.lines(cell, w) for c, cell, w in zip(columns, row, widths, strict=True)]
        lines += _joined(cells, widths, gap)
    return lines


def _joined(cells: Sequence[Sequence[str]], widths: Sequence[int], gap: int) -> list[str]:
    """A row's lines from the lines of its cells."""
    height = max(map(len, cells))
    filled = [[*cell, *[""] * (height - len(cell))] for cell in cells]
    padded = [[line.ljust(width) for line in cell] for cell, width in zip(filled, widths, strict=True)]
    return [(" " * gap).join(parts).rstrip() for parts in zip(*padded, strict=True)]


def _least(columns: Sequence[_Column], gap: int) -> int:
    """The smallest width of columns side by side."""
    return sum(column.least for column in columns) + gap * (len(columns) - 1)


def _indented(cell: str) -> list[str]:
    """The words of a cell, with the indentation that each needs at the start of a line."""
    return [word if i == 0 else _INDENT + word for i, word in enumerate(cell.split())]


def _wrapped(text: str, width: int, indent: str = "") -> list[str]:
    return wrap(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False) or [""]
