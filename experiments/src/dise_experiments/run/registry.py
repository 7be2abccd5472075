"""The tasks by name."""

from dise_experiments.circles.task import CirclesTask
from dise_experiments.common.task import Task
from dise_experiments.mnist.task import MnistTask
from dise_experiments.physionet.task import PhysionetTask

TASKS: dict[str, Task] = {task.name: task for task in (MnistTask(), PhysionetTask(), CirclesTask())}
