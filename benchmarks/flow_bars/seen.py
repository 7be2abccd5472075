"""What a row of the table says."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Seen:
    """A measurement beside its bar.

    Attributes:
        text: the numbers in one cell.
        holds: whether the bar is reached; None: not measured.
        numbers: all of them, for the JSON file.
    """

    text: str
    holds: bool | None
    numbers: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)
