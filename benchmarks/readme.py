"""Tables that scripts write into benchmarks/README.md, each between two marks."""

from pathlib import Path

PAGE = Path(__file__).with_name("README.md")


def marks(script: str) -> tuple[str, str]:
    """The lines around a script's text."""
    return f"<!-- written by: python benchmarks/{script} --readme -->", f"<!-- end of {script} -->"


def write(text: str, script: str) -> None:
    """Put a script's text between its marks.

    Raises:
        ValueError: the page has no such marks.
    """
    begin, end = marks(script)
    before, begins, rest = PAGE.read_text(encoding="utf-8").partition(begin)
    _, ends, after = rest.partition(end)
    if not begins or not ends:
        raise ValueError(f"{PAGE}: expected the marks {begin} and {end}")
    PAGE.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")
