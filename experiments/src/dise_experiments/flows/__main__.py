"""`python -m dise_experiments.flows TASK`: train the field of a task."""

from pathlib import Path
from typing import Annotated

import torch
import typer

from dise_experiments.flows.config import FieldConfig
from dise_experiments.flows.sources import NAMES
from dise_experiments.flows.training import train_field


def main(
    tasks: Annotated[list[str], typer.Argument(help=f"Among {', '.join(NAMES)}.")],
    preset: Annotated[str, typer.Option(help="sample or cpu.")] = "sample",
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights and random draws.")] = 0,
    data_dir: Annotated[Path | None, typer.Option(envvar="DISE_DATA", help="Folder with mnist/*.gz.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or gpu.")] = "auto",
    out: Annotated[Path, typer.Option(help="Folder of the run directories.")] = Path("runs"),
    threads: Annotated[int | None, typer.Option(min=1, help="Number of CPU threads of torch.")] = None,
) -> None:
    """Train fields by flow matching, one after the other; a repeated command continues where it stopped."""
    if threads is not None:
        torch.set_num_threads(threads)
    for config in [FieldConfig.of(task, preset, seed) for task in tasks]:
        path = config.directory(out)
        train_field(config, path, data_dir=data_dir, device=device)
        typer.echo(str(path))


if __name__ == "__main__":
    typer.run(main)
