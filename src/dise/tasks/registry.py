"""Tasks by name."""

from dise.tasks.circles.task import CirclesTask
from dise.tasks.mnist.task import MnistTask
from dise.tasks.physionet.task import PhysionetTask
from dise.tasks.task import Task

TASKS: dict[str, Task] = {task.name: task for task in (MnistTask(), PhysionetTask(), CirclesTask())}
