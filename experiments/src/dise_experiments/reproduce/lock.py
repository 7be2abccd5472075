"""Work that only one process at a time may do."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from dise_experiments.run.config import ExperimentError


@contextmanager
def locked(file: Path, otherwise: str, *, patience: float = 0.0) -> Iterator[None]:
    """Hold a lock, which the system releases when the process ends, whatever ends it.

    Args:
        file: the lock's file.
        otherwise: what to say if another process holds it.
        patience: seconds to wait for that process.

    Raises:
        ExperimentError: another process holds the lock.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file, timeout=patience)
    try:
        lock.acquire()
    except Timeout as error:
        raise ExperimentError(otherwise) from error
    try:
        yield
    finally:
        lock.release()
