import pytest
import torch

from dise_experiments.flows.config import FieldConfig
from dise_experiments.flows.measure.sizes import Sizes
from dise_experiments.flows.sources import field
from dise_experiments.flows.stored import claim
from dise_experiments.run.rundir import MODEL, save_weights

TINY = Sizes(
    draws=64,
    batch=64,
    density_draws=8,
    compared=40,
    epochs=2,
    observations=2,
    fitted=(4,),
    fit_draws=32,
    fit_iterations=10,
    tolerance=0.1,
    epsilon=0.1,
    sampler_draws=400,
    many_candidates=False,
    timed=(1, 8),
)


@pytest.fixture(scope="session")
def tiny():
    return TINY


def stored_field(task, out):
    """The directory of a field with random weights."""
    config = FieldConfig.of(task, "sample")
    path = config.directory(out)
    claim(path, config)
    torch.manual_seed(1)
    network = field(task)
    save_weights(network, path / MODEL)
    return path


@pytest.fixture(scope="session")
def store():
    """store(task, out): the directory of a field with random weights."""
    return stored_field


@pytest.fixture
def stored(tmp_path):
    """stored(task): as `store`, in a folder of the test's."""
    return lambda task: stored_field(task, tmp_path)
