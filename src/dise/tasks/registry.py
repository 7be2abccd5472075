"""Tasks by name."""

from dise.tasks.mnist.task import MnistTask
from dise.tasks.task import Task

TASKS: dict[str, Task] = {"mnist": MnistTask()}
