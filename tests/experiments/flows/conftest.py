import os
from pathlib import Path

import pytest

from dise_experiments.flows.simulators.reference import reference_posterior

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def data_dir():
    """The folder of the benchmark's data, which are not part of this repository."""
    folder = Path(os.environ.get("DISE_DATA") or ROOT.parent / "shared" / "data")
    if not (folder / "sbibm").is_dir():
        pytest.skip(f"needs the benchmark's reference posteriors in DISE_DATA; {folder}/sbibm is not there")
    return folder


@pytest.fixture(scope="session")
def reference(data_dir):
    """Reference posteriors [10000, D] of (task, observation)."""
    return lambda task, index: reference_posterior(task, index, data_dir)
