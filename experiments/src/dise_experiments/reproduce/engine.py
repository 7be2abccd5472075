"""What carries out jobs."""

from abc import ABC, abstractmethod

from dise_experiments.reproduce.grid import Cell

ENGINES = ("local", "ray")


class Engine(ABC):
    """Workers that carry out cells' jobs, each in a process of its own.

    Attributes:
        workers: number of jobs at the same time.
    """

    workers: int

    @abstractmethod
    def submit(self, cell: Cell) -> None:
        """Begin a cell's job, on a free worker."""

    @abstractmethod
    def finished(self, seconds: float) -> list[tuple[Cell, str | None]]:
        """Wait at most so long for jobs to end: those that did, each with None, or why its process ended early."""

    @abstractmethod
    def close(self) -> None:
        """End all jobs. Their files are complete or absent, so nothing else is needed to continue later."""
