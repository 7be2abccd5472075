"""`dise run flows`: train fields, measure their solvers, write the report."""

from collections.abc import Callable, Sequence
from pathlib import Path

from dise_experiments.flows.config import FieldConfig
from dise_experiments.flows.measure.field import measure_field, time_field
from dise_experiments.flows.sources import NAMES
from dise_experiments.flows.training import train_field
from dise_experiments.run.config import ExperimentError, choose

TASK = "flows"
TARGETS = {"sample": ("moons", "gaussian_linear"), "cpu": NAMES}
"""The targets of each preset, unless others are chosen."""


def run_flows(
    targets: Sequence[str],
    preset: str,
    seed: int = 0,
    *,
    out: Path,
    data_dir: Path | None = None,
    device: str = "auto",
    resume: bool = True,
    timing: bool = True,
    log: Callable[[str], None] = lambda line: None,
) -> Path:
    """Train the targets' fields, compare their solvers and time them; all that is finished is reused.

    Args:
        targets: among `NAMES`; () for those of the preset.
        preset: "sample" or "cpu".
        seed: of weights and draws in training.
        out: folder of the run directories.
        data_dir: folder of MNIST and of the benchmark's posteriors.
        device: for training, Lightning's accelerator; solvers are measured on the CPU.
        resume: whether results of an earlier command may be used.
        timing: also measure wall-clock times.
        log: is called with lines on the progress.

    Returns:
        the preset's folder.

    Raises:
        ExperimentError: an unknown target or preset, a directory of another training, or results without `resume`.
        DataError: MNIST is missing or damaged.
    """
    chosen = tuple(dict.fromkeys(targets)) or choose("preset", preset, TARGETS)
    paths = {config.directory(out): config for config in (FieldConfig.of(task, preset, seed) for task in chosen)}
    for path in paths:
        if not resume and path.exists():
            raise ExperimentError(f"{path} exists; choose another --out, or leave --no-resume away")
    for path, config in paths.items():
        log(f"training {config.name} in {path}")
        log("trained" if train_field(config, path, data_dir=data_dir, device=device) else "trained before: reused")
    for path in paths:
        if not measure_field(path, data_dir=data_dir, log=log):
            log(f"{path.name}: measured before: reused")
    for path in paths if timing else ():
        time_field(path, log=log)
    return out / TASK / preset
