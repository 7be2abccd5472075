"""The benchmark's ten observations of each task, and its reference posteriors.

`observations.json` and the reference posteriors are data of sbibm 1.1.0 (Lueckmann et al., MIT licence), unchanged.
"""

import json
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dise_experiments.common.errors import DataError

NUMBER = 10  # of observations


def observation(task: str, index: int) -> Tensor:
    """Observed data x [C] of a task; indices count from 1, as in the benchmark.

    Raises:
        ValueError: there is no such task or observation.
    """
    tables = json.loads(Path(__file__).with_name("observations.json").read_text(encoding="utf-8"))
    if task not in tables:
        raise ValueError(f"task: expected one of {', '.join(tables)}, got {task!r}")
    if not 1 <= index <= NUMBER:
        raise ValueError(f"index: expected 1 to {NUMBER}, got {index!r}")
    return torch.tensor(tables[task][index - 1])


def reference_posterior(task: str, index: int, data_dir: Path | None = None) -> Tensor:
    """10,000 draws of θ [10000, D] from the posterior of an observation.

    Args:
        task: of the benchmark.
        index: of the observation, from 1.
        data_dir: folder of sbibm/TASK/num_observation_INDEX; by default $DISE_DATA.

    Raises:
        DataError: the file is missing.
    """
    folder = data_dir or Path(os.environ.get("DISE_DATA") or ".")
    file = folder / "sbibm" / task / f"num_observation_{index}" / "reference_posterior_samples.csv.bz2"
    if not file.is_file():
        raise DataError(f"{file}: missing; expected a file of sbibm 1.1.0's package, give its folder as data_dir")
    return torch.from_numpy(np.loadtxt(file, delimiter=",", skiprows=1, dtype=np.float32))
