"""The processes of a data-parallel training: started here, or by torchrun."""

import multiprocessing
import os
import socket
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

from dise_experiments.common.errors import UserError
from dise_experiments.run.config import ExperimentError


class Processes(NamedTuple):
    """How many processes share out each batch.

    Attributes:
        devices: processes per machine, each with a device of its own, or as many processors as there are for it.
        nodes: machines.
    """

    devices: int = 1
    nodes: int = 1

    @property
    def number(self) -> int:
        """Number of all processes."""
        return self.devices * self.nodes

    @property
    def must_be_started(self) -> bool:
        """Whether there are several, and this is not one of them.

        Raises:
            ExperimentError: other numbers than torchrun's, or several machines without torchrun.
        """
        started = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        if "RANK" in os.environ:
            if started != (self.number, self.devices):
                raise ExperimentError(
                    f"devices, nodes: torchrun started {started[0]} processes, {started[1]} on this machine; expected "
                    f"{self.devices} × {self.nodes}"
                )
            return False
        if self.nodes > 1:
            raise ExperimentError(
                f"nodes: start the same command on every machine by torchrun --nnodes {self.nodes} --nproc-per-node "
                f"{self.devices} --rdzv-backend c10d --rdzv-endpoint HOST:PORT -m dise_experiments …"
            )
        return self.number > 1


ONE = Processes()


def rank() -> int:
    """The number of this process among those of a training; 0 writes the files."""
    return int(os.environ.get("RANK", 0))


def in_processes(number: int, call: Callable[..., Any], *args: Any) -> Any:
    """The value of `call(*args)` in the first of `number` processes of this machine, which all call it.

    They find each other as processes of torchrun do. If one fails, the others are ended.

    Raises:
        UserError: that of the first process that failed.
        RuntimeError: a process ended otherwise; its traceback is on stderr.
    """
    context = multiprocessing.get_context("spawn")
    port = _free_port()
    pipes = [context.Pipe(duplex=False) for _ in range(number)]
    processes: list[BaseProcess] = [
        context.Process(target=_process, args=(rank, number, port, sender, call, args))
        for rank, (_, sender) in enumerate(pipes)
    ]
    begun: list[BaseProcess] = []
    try:
        for process, (_, sender) in zip(processes, pipes, strict=True):
            process.start()
            begun.append(process)
            sender.close()
        return _first_value(begun, [receiver for receiver, _ in pipes])
    except BaseException:  # Ctrl-C too
        for process in begun:
            process.kill()
        raise
    finally:
        for process in begun:
            process.join()


def _first_value(processes: list[BaseProcess], receivers: list[Connection]) -> Any:
    """Wait for all processes, or for the first that fails."""
    values: dict[int, Any] = {}
    while len(values) < len(processes):
        for receiver in wait([r for i, r in enumerate(receivers) if i not in values]):
            index = receivers.index(receiver)  # type: ignore[arg-type]
            try:
                error, value = receivers[index].recv()
            except EOFError:
                processes[index].join()
                raise RuntimeError(f"process {index} of the training ended with {processes[index].exitcode}") from None
            if error is not None:
                raise error
            values[index] = value
    return values[0]


def _process(rank: int, number: int, port: int, sender: Connection, call: Callable[..., Any], args: Any) -> None:
    end_with_parent()
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "NODE_RANK": "0",
        "WORLD_SIZE": str(number),
        "LOCAL_WORLD_SIZE": str(number),
    }
    try:
        sender.send((None, call(*args)))
    except UserError as error:
        sender.send((error, None))


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def end_with_parent() -> None:
    """End this process, which multiprocessing started, as soon as its parent has ended, whatever ended it."""
    parent = multiprocessing.parent_process()
    if parent is None:
        raise RuntimeError("this process has no parent of multiprocessing")

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="end with parent", daemon=True).start()
