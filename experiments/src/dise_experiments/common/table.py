"""Tables of text, for the terminal and for reports."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev


@dataclass(frozen=True)
class Table:
    """A title, a header, rows of text and a note."""

    title: str
    header: Sequence[str]
    rows: list[list[str]]
    note: str = ""

    def markdown(self) -> str:
        """The table in Markdown."""
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return f"## {self.title}\n\n{body}\n" + (f"\n{self.note}\n" if self.note else "")


def number(value: float | None, digits: int = 2) -> str:
    """A number as text; a dash for None."""
    return "–" if value is None else f"{value:.{digits}f}"


def spread(values: Sequence[float], digits: int) -> str:
    """Mean ± standard deviation of values as text; the value itself if there is one, a dash if there is none."""
    if not values:
        return "–"
    text = f"{mean(values):.{digits}f}"
    return text + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")
