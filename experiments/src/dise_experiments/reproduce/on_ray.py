"""Jobs on a Ray cluster."""

from typing import Any

from dise_experiments.reproduce.engine import Engine
from dise_experiments.reproduce.grid import Cell
from dise_experiments.reproduce.job import Work, carry_out
from dise_experiments.run.config import ExperimentError


class RayEngine(Engine):
    """A task of Ray per job.

    Args:
        workers: number of jobs at the same time; None: as many as the cluster has processors for.
        work: what all jobs share; its folders must be the same on all nodes.
        address: of a cluster, or "auto"; None starts one on this machine, which ends with this process.

    Raises:
        ExperimentError: Ray is not installed, or there is no such cluster.
    """

    def __init__(self, workers: int | None, work: Work, address: str | None) -> None:
        self.ray = _ray()
        gpus = 1 if work.device == "gpu" else 0
        options: dict[str, Any] = {"address": address or "local", "log_to_driver": False, "configure_logging": False}
        if address is None:
            options |= {"num_cpus": (workers or 1) * work.threads, "include_dashboard": False}
        try:
            self.ray.init(**options)
        except ConnectionError as error:
            raise ExperimentError(f"address: no Ray cluster answers at {address!r} ({error})") from error
        cpus = int(self.ray.cluster_resources().get("CPU", 0))
        self.workers = workers or max(cpus // work.threads, 1)
        # a job is resumed by the next command, like on any engine; Ray would repeat it for ever on a machine that is
        # out of memory
        self.task = self.ray.remote(num_cpus=work.threads, num_gpus=gpus, max_retries=0)(carry_out)
        self.work = self.ray.put(work)
        self.running: dict[Any, Cell] = {}

    def submit(self, cell: Cell) -> None:
        """See `Engine`."""
        self.running[self.task.remote(cell, self.work)] = cell

    def finished(self, seconds: float) -> list[tuple[Cell, str | None]]:
        """See `Engine`."""
        ended, _ = self.ray.wait(list(self.running), num_returns=1, timeout=seconds)
        return [(self.running.pop(reference), self._reason(reference)) for reference in ended]

    def _reason(self, reference: Any) -> str | None:
        try:
            self.ray.get(reference)
        except self.ray.exceptions.RayError as error:
            return f"Ray: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        return None

    def close(self) -> None:
        """See `Engine`."""
        for reference in self.running:
            self.ray.cancel(reference, force=True)
        self.running = {}
        self.ray.shutdown()


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ExperimentError(
            "engine: ray is not installed; pip install 'dise-experiments[ray]', or use --engine local"
        ) from error
    return ray
