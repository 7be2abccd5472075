"""A report as one HTML file that needs no network and no other file."""

import base64
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import jinja2

import dise
from dise_experiments.common.table import Table

_KINDS = {".png": "image/png", ".gif": "image/gif", ".svg": "image/svg+xml"}
_NUMBER = re.compile(r"[-−+]?[\d.,]+(e[-+]?\d+)?\s*(%|×|ms|\*)?(\s*±\s*[\d.,]+)?|–")


class _Figure(NamedTuple):
    kind: str
    data: str  # base64
    caption: str


def page(
    title: str,
    tables: Sequence[Table],
    figures: Sequence[tuple[Path, str]],
    *,
    summary: Sequence[str],
    commands: Sequence[str],
) -> str:
    """The HTML of a report.

    Args:
        title: of the page.
        tables: one section each.
        figures: PNG, GIF or SVG files, each with its caption, which is also its text for who cannot see it.
        summary: lines at the top.
        commands: that make the runs.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    environment.tests["numeric"] = lambda cell: _NUMBER.fullmatch(cell) is not None
    template = environment.from_string(files(__package__).joinpath("report.html.jinja").read_text(encoding="utf-8"))
    inline = [
        _Figure(_KINDS[file.suffix], base64.b64encode(file.read_bytes()).decode(), text) for file, text in figures
    ]
    return template.render(
        title=title, tables=tables, figures=inline, summary=summary, commands=commands, environment=_environment()
    )


def _environment() -> dict[str, str]:
    """What made the report."""
    return {
        "dise": dise.__version__,
        "revision": _revision() or "unknown",
        "torch": version("torch"),
        "Python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors",
    }


def _revision() -> str | None:
    """The commit of the checkout that the package is in, with "+" if it was changed since; None: it is in none."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--exclude=*", "--abbrev=12"]
    try:
        found = subprocess.run(git, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()
