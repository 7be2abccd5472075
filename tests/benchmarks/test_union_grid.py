"""The union-grid way computes what the published code does: the same as dise where both grids are one."""

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from dise import Dopri5
from dise_experiments.physionet.data import load_physionet_sample
from dise_experiments.physionet.loss import latent_ode_loss
from dise_experiments.physionet.model import LatentODE
from dise_experiments.physionet.records import Scaling
from dise_experiments.physionet.stays import Stays

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "union_grid.py"


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPT.parent))  # as if it was called as a script
        return runpy.run_path(str(SCRIPT))


@pytest.fixture(scope="module")
def records():
    sample = load_physionet_sample(q=0.5)
    return Scaling.fit(sample.train)(sample.test[:4])


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = LatentODE()
    model.block.integrator = Dopri5(rtol=1e-6, atol=1e-6)
    return model


def stays(records, samples=3):
    return Stays.of(records, noise=torch.randn(samples, len(records), 20, generator=torch.Generator().manual_seed(1)))


def test_losses_of_records_by_themselves_are_equal(script, model, records):
    assert script["alone"](model, records) < 1e-6


@torch.no_grad()
def test_stays_that_share_their_times_are_encoded_alike(script, model, records):
    one, other = records[:1], records[1:2]
    number = int(records.counts[:2].min())
    both = replace(
        records[:2],
        times=one.times[:number].repeat(2),
        values=torch.cat([one.values[:number], other.values[:number]]),
        mask=torch.cat([one.mask[:number], other.mask[:number]]),
        counts=torch.tensor([number, number]),
    )
    x = stays(both)
    union = script["UnionGrid"](model, script["by_odeint"])
    ours, theirs = model.reconstruct(x), union.reconstruct(x)
    for name in ("mean", "deviation"):
        assert_close(getattr(ours, name), getattr(theirs, name), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("follow", ["by_odeint", "by_save_points"])
@torch.no_grad()
def test_from_the_same_starts_all_follow_the_same_paths(script, model, records, follow):
    x, union = stays(records), script["UnionGrid"](model, script[follow])
    assert len(x.times.unique()) > int(records.counts.max())  # no stay has all of the batch's times
    union._encode = lambda x, times, column: model.encoder(x)
    ours, theirs = model.reconstruct(x), union.reconstruct(x)
    for name in ("values", "logits"):
        assert_close(getattr(ours, name), getattr(theirs, name), rtol=1e-4, atol=1e-4)
    assert_close(latent_ode_loss(ours, x)[0], latent_ode_loss(theirs, x)[0], rtol=1e-4, atol=0)


@torch.no_grad()
def test_a_stay_without_an_observation_keeps_its_state_but_for_the_ode(script, model, records):
    """Nothing that another stay has observed reaches it: only the times do."""
    x, union = stays(records), script["UnionGrid"](model, script["by_odeint"])
    times, column = x.times.unique(return_inverse=True)
    before, _ = union._encode(x, times, column)
    other = x.stay != 0
    changed = replace(x, values=torch.where(other[:, None], 2 * x.values, x.values))
    after, _ = union._encode(changed, times, column)
    assert_close(after[0], before[0], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(after[1:], before[1:], atol=1e-3)


def test_nfe_counts_the_generators_evaluations(script, model, records):
    union, x = script["UnionGrid"](model, script["by_odeint"]), stays(records)
    union.reconstruct(x)
    assert union.nfe > 0
    assert (union.nfe - 2) % 6 == 0  # torchdiffeq's dopri5


def test_it_prints_a_table_and_writes_json(script, tmp_path, monkeypatch, capsys):
    arguments = ["--sample", "--batches", "1", "--batch-size", "3", "--threads", "1", "--out", tmp_path / "out.json"]
    monkeypatch.setattr(sys, "argv", ["union_grid.py", *map(str, arguments)])
    script["main"]()
    result = json.loads((tmp_path / "out.json").read_text())
    assert {key: result[key] for key in ("records", "batch", "batches", "epoch_batches", "quantization")} == {
        "records": 200, "batch": 3, "batches": 1, "epoch_batches": 64, "quantization": 0.016,
    }  # fmt: skip
    assert set(result["ways"]) == {"dise", "union grid", "union grid, save points"}
    for row in result["ways"].values():
        assert set(row) == {"s", "epoch_s", "encoder_steps", "nfe", "loss"}
        assert row["epoch_s"] == 64 * row["s"]
    assert result["largest relative loss difference of single records"] < 1e-6
    printed = capsys.readouterr().out
    assert "union grid" in printed
    assert "extrapolated" in printed
