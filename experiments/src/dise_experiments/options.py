"""The options of the command line's commands."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Data(StrEnum):
    """Data to which selectors are fitted."""

    held_out = "held-out"
    train = "train"


class Selectors(StrEnum):
    """Selectors of a run."""

    standard = "standard"
    published = "published"


TaskName = Annotated[str, typer.Argument(metavar="TASK", help="Experiment: mnist, physionet or circles.")]
TaskOrFlows = Annotated[str, typer.Argument(metavar="TASK", help="Experiment: mnist, physionet, circles or flows.")]
Preset = Annotated[
    str,
    typer.Option(
        help="Size of the experiment: sample (minutes), cpu (at most a quarter of an hour per model), long (mnist, "
        "10 epochs) or paper."
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of weights, order and random draws in training.")]
DataDir = Annotated[
    Path | None,
    typer.Option(
        envvar="DISE_DATA",
        help="Folder with mnist/*.gz, physionet2012/* and sbibm/*. Without it, a task's data are downloaded and "
        "checked, but for sbibm's. The preset sample and circles need no data.",
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu or gpu.")]
Out = Annotated[Path, typer.Option(help="Folder of the run directories.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Number of CPU threads of torch.")]
Resume = Annotated[
    bool, typer.Option(help="Continue an interrupted run and reuse a finished one; --no-resume refuses both.")
]
Changes = Annotated[
    list[str],
    typer.Option("--set", metavar="NAME=VALUE", help="Change a setting of the preset, e.g. target=moons. Repeatable."),
]
Weight = Annotated[float | None, typer.Option(min=0.0, help="λ of the regularizer; the paper's by default.")]
Reduce = Annotated[
    str | None,
    typer.Option(
        help="R over a batch: sum, as Eq. 2 has it (default of preset paper), or mean (default of the others); for "
        "regularizers that are of samples."
    ),
]
Regularizers = Annotated[
    list[str],
    typer.Option(
        help="Regularizer: none, kinetic, l1, l2, error, raw-error, weighted-error, stiffness, jacobian, taylor2, "
        "taylor3, steer. Repeatable."
    ),
]
Models = Annotated[
    list[str],
    typer.Option(
        help="Model, by default the task's first; mnist: odenet, rknet, resnet; physionet: z_end, z0. Repeatable; "
        "the other models only without regularizer."
    ),
]
RunDir = Annotated[Path, typer.Argument(metavar="RUN", help="Run directory, created by `dise train`.")]
Targets = Annotated[
    list[str],
    typer.Option(
        "--target",
        help="Field of the task flows, by default those of the preset: checkerboard, moons, digits, or a task of the "
        "simulation-based inference benchmark, such as two_moons. Repeatable.",
    ),
]
Alpha = Annotated[float | None, typer.Option(help="Exponent α of Eq. 4 and 5; the paper's by default.")]
Penalty = Annotated[
    float | None,
    typer.Option(
        "--penalty",
        "-M",
        help="Penalty M of Eq. 4 and 5 for all selectors. By default the paper's selectors have the paper's M, and "
        "that of the others is chosen on held-out data.",
    ),
]
On = Annotated[Data, typer.Option(help="Collect costs on held-out data, or on as many training data.")]
Selector = Annotated[
    Selectors,
    typer.Option(
        help="The task's own selectors, or the paper's as published: Euler, RK4, DOPRI, Eq. 4 or 5 as printed, costs "
        "on all training data."
    ),
]
EulerSteps = Annotated[int, typer.Option(min=1, help="Steps of Euler for --selector published.")]
RK4Steps = Annotated[int, typer.Option(min=1, help="Steps of RK4 for --selector published.")]
Limit = Annotated[
    int | None, typer.Option(min=8, help="Use only so many training samples for --selector published; rows say so.")
]
Beta = Annotated[
    float | None,
    typer.Option(
        help="β of Eq. 5 for --selector published; by default the mean NLP of the flow trained with --reg error and "
        "the same seed."
    ),
]
Timing = Annotated[bool, typer.Option(help="Also measure wall-clock times; nothing else should run meanwhile.")]
Devices = Annotated[
    int, typer.Option(min=1, help="Processes on this machine that share out each training batch, with a device each.")
]
Nodes = Annotated[
    int, typer.Option(min=1, help="Machines; start the command on each of them by torchrun -m dise_experiments.")
]
