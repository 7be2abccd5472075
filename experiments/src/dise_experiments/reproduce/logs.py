"""The log of a cell, which exists from its first attempt until it is done."""

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dise_experiments.common.errors import UserError

_FAILED = "failed: "
SHOWN = 15  # last lines of a log that are shown


def log_file(out: Path, name: str) -> Path:
    """The log of a cell: OUT/logs/task/preset/run/part.log."""
    return out / "logs" / f"{name}.log"


def begun(out: Path, name: str) -> bool:
    """Whether a cell was begun and is not done."""
    return log_file(out, name).exists()


def failure(out: Path, name: str) -> str | None:
    """Why a cell failed; None if it did not."""
    lines = log_end(out, name)
    return lines[-1].removeprefix(_FAILED) if lines and lines[-1].startswith(_FAILED) else None


def log_end(out: Path, name: str) -> list[str]:
    """The last lines of a cell's log."""
    file = log_file(out, name)
    return file.read_text(encoding="utf-8", errors="replace").splitlines()[-SHOWN:] if file.exists() else []


def note_failure(out: Path, name: str, reason: str) -> None:
    """Write a failure's reason, one line, as the log's last line."""
    file = log_file(out, name)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as log:
        log.write(f"\n{_FAILED}{' '.join(reason.split()) or 'without a message'}\n")


@contextmanager
def logged(out: Path, name: str) -> Iterator[None]:
    """Within it, what the process prints goes to the cell's log; on success the log is removed."""
    file = log_file(out, name)
    file.parent.mkdir(parents=True, exist_ok=True)
    with _printing_to(file):
        try:
            yield
        except UserError as error:
            note_failure(out, name, str(error))
            raise
        except Exception as error:
            traceback.print_exc()
            sys.stderr.flush()
            note_failure(out, name, f"{type(error).__name__}: {error}")
            raise
    file.unlink(missing_ok=True)


@contextmanager
def _printing_to(file: Path) -> Iterator[None]:
    """Within it, stdout and stderr of the process, of its libraries too, go to a file."""
    streams = (sys.stdout, sys.stderr)
    file.write_text("", encoding="utf-8")
    with file.open("a", encoding="utf-8", buffering=1) as log:
        kept = [os.dup(1), os.dup(2)]
        try:
            for descriptor in (1, 2):
                os.dup2(log.fileno(), descriptor)
            sys.stdout = sys.stderr = log
            yield
        finally:
            sys.stdout, sys.stderr = streams
            for descriptor, copy in zip((1, 2), kept, strict=True):
                os.dup2(copy, descriptor)
                os.close(copy)
