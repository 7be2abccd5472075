import pytest
import torch

from dise.tasks.physionet.records import VARIABLES, Records

SOME = ((0.0, 0.5, 7.25, 30.0), (0.0,), (0.0, 0.1, 0.2, 0.3, 0.4, 47.5), (0.0, 48.0), (0.0, 1.0, 2.0, 3.0))


def records_at(*times, seed=0):
    """Records with these times (hours), at each of which something is measured, nothing is not."""
    generator = torch.Generator().manual_seed(seed)
    flat = torch.tensor([t for record in times for t in record])
    mask = torch.rand(len(flat), len(VARIABLES), generator=generator) < 0.3
    mask[:, 0] = True
    values = torch.rand(mask.shape, generator=generator) * mask
    return Records(
        ids=torch.arange(len(times)) + 100,
        times=flat,
        values=values,
        mask=mask,
        counts=torch.tensor([len(record) for record in times]),
        labels=torch.arange(len(times)) % 2,
    )


@pytest.fixture
def make_records():
    """Makes records of given times in hours, a sequence a record."""
    return records_at


@pytest.fixture
def times():
    """Five stays: short gaps, long gaps, one observation alone."""
    return SOME


@pytest.fixture
def records(times):
    """Records at these times, random values."""
    return records_at(*times)
