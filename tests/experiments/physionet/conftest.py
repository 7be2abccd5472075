import pytest
import torch

from dise_experiments.common.task import Run
from dise_experiments.physionet.records import VARIABLES, Records

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


def measured(policy, auroc, nfe, **more):
    """A row of an evaluation; DOPRI's area is 0.8."""
    row = {"policy": policy, "nfe": nfe, "auroc": auroc, "auprc": auroc - 0.25, "ece": 0.03125}
    if policy.startswith("random"):
        return row
    row |= {"interval": [auroc - 0.05, auroc + 0.05], "difference": auroc - 0.8}
    row |= {"difference_interval": [auroc - 0.81, auroc - 0.79]}
    return row | {"gap": abs(auroc - 0.8), "adequate": 0.75} | more


@pytest.fixture(scope="session")
def run():
    """run(reg, model=, seed=, auroc=, nfe=, dise=, name=): a run; on set b areas are 0.1 below and NFE 1 more."""

    def part(model, auroc, nfe, dise):
        if model == "z0":
            return [measured("no ODE", auroc, 0.0)]
        shares = {"Euler": 0.25, "Euler(steps=4)": 0.25, "Dopri5(atol=0.0001)": 0.125, "Bosh3": 0.375}
        rows = [
            measured("Euler", auroc - 0.125, 1.0, nfe_batch=1.0),
            measured("Dopri5(atol=0.0001, first_step=span)", auroc, nfe - 7, nfe_batch=nfe),
            measured("Dopri5(atol=0.0001)", auroc, nfe, nfe_batch=nfe + 6),
            measured("oracle", auroc, 2.0),
            measured("DISE (paper)", auroc - 0.0625, 4.0, selector_macs=0.041, nfe_batch=20.0, shares=shares),
            measured("DISE (pooled)", auroc + 0.005, 8.0, selector_macs=0.25, nfe_batch=26.0, shares={"Euler": 1.0}),
            measured("random, mix of paper", auroc - 0.07, 4.0),
        ]
        return rows if dise else [row for row in rows if not row["policy"].startswith(("DISE", "random"))]

    def make(reg="none", *, model="z_end", seed=0, auroc=0.8, nfe=20.0, dise=True, name=None):
        sampled = {"auroc": auroc - 0.01, "auprc": 0.5, "ece": 0.02}
        metrics = {
            "samples": 800,
            "policies": part(model, auroc, nfe, dise),
            "published": sampled | {"interval": [auroc - 0.06, auroc + 0.04]},
            "samples_b": 4000,
            "policies_b": part(model, auroc - 0.1, nfe + 1, dise),
            "published_b": sampled | {"auroc": auroc - 0.11, "interval": [auroc - 0.12, auroc - 0.1]},
        }
        return Run(name or f"{model}-{reg}-seed{seed}", model, reg, 0.0, seed, metrics, {}, None)

    return make
