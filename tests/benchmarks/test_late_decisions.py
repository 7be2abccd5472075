"""The benchmark of early and late choices: what is counted, what selectors see, and its tables."""

from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import nn

import dise
from dise.flow.certified.varied_tables import varied_tables

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _path(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))


def module(name):
    return import_module(f"flow_budgets.{name}")


class Growth(nn.Module):
    """y' = c y with c per draw; remembers the values that it returned."""

    def __init__(self):
        super().__init__()
        self.values = []

    def forward(self, t, y, c):
        self.values.append(c * y)
        return self.values[-1]


def growths(rates):
    rates = torch.as_tensor(rates, dtype=torch.float32)[:, None]
    return import_module("flow_bars.fields").Draws(Growth(), torch.ones(len(rates), 2), (rates,))


@pytest.mark.parametrize("prefix", [(), (0.15,), (0.12, 0.3)])
def test_tables_of_a_set_share_their_first_values(prefix):
    found = module("outcomes")
    tables = found.tables(prefix)
    assert {table.table.evaluations for table in tables} <= set(found.STEPS)
    for table in tables:
        assert table.table.times[: len(prefix) + 1] == (0.0, *prefix)
    draws, number = growths([0.5, 1.0]), len(prefix) + 1
    expected = found.velocities(draws, tables[0], number)
    for table in (tables[0], tables[-1]):
        draws.f.values.clear()
        draws.solve(table)
        for value, seen in zip(expected, draws.f.values, strict=False):
            torch.testing.assert_close(value, seen)


def test_varied_tables_begin_with_those_of_no_prefix():
    tables = module("outcomes").tables()
    assert list(varied_tables()[: len(tables)]) == tables


def test_outcomes_are_errors_against_the_ends():
    found, draws = module("outcomes"), growths([0.0, 1.0])
    ends = torch.ones(2, 2) * torch.tensor([[1.0], [torch.e]])
    seen = found.outcomes(draws, ends, [dise.Euler(1), dise.Euler(2)])
    torch.testing.assert_close(seen.error, torch.tensor([[0.0, 0.0], [torch.e - 2, torch.e - 2.25]]))
    assert seen.nfe.tolist() == [[1, 2], [1, 2]]


def _known(number):
    """Draws whose rate tells whether the first table of one evaluation suffices; the second always does."""
    rates = torch.arange(number) % 2
    draws = growths(rates)
    error = torch.stack([rates.float(), torch.zeros(number)], 1)
    nfe = torch.tensor([1, 4]).expand(number, 2)
    return draws, module("outcomes").Outcomes((dise.Euler(1), dise.Euler(4)), nfe, error)


def test_a_selector_that_sees_what_matters_reaches_the_oracle():
    selectors, split = module("selectors"), module("selectors").Split(600, 400, 400)
    draws, found = _known(split.total)
    tight = torch.full((split.total,), 50)
    field = selectors.Field(draws, draws.conditions[0] * draws.noise, tight, split)
    assert selectors.oracle(found, tight, 0.1, split) == 2.5
    assert selectors.best_single(found, 0.1, split)["nfe"] == 4
    seen = selectors.policy(field, found, 0.1)
    assert (seen["nfe"], seen["risk"]) == (2.5, 0)


def test_a_late_value_is_seen():
    selectors, split = module("selectors"), module("selectors").Split(600, 400, 400)
    draws, found = _known(split.total)
    tight, rates = torch.full((split.total,), 50), draws.conditions[0]
    blind = selectors.Field(type(draws)(draws.f, draws.noise), torch.ones_like(draws.noise), tight, split)
    assert selectors.policy(blind, found, 0.1)["nfe"] == 4
    assert selectors.policy(blind.seeing([rates]), found, 0.1)["nfe"] == 2.5


def test_a_candidate_that_fails_too_often_is_not_certified():
    selectors, split = module("selectors"), module("selectors").Split(0, 400, 400)
    _, found = _known(800)
    assert selectors.best_single(found.take([0]), 0.1, split) is None


def test_the_tables_state_shares_of_the_oracle_s_gain():
    row = {"nfe": 4.0, "risk": 0.005, "macs": 10.0}
    found = {
        "moons": {
            "macs": 100.0,
            "tolerances": {
                "0.03": {
                    "single": {"nfe": 7.0},
                    "other single": {"nfe": 6.0},
                    "oracle": 2.0,
                    "early": row,
                    "after []": {"early": row},
                    "after [0.1]": {"single": {"nfe": 7.0}, "early": row, "late": None},
                    "128 units": row,
                    "4000 draws": row,
                    "equal steps": None,
                }
            },
        }
    }
    lines = module("readme").text(found).splitlines()
    assert "| moons | 0.03 | 7.00 | 6.00 | 4.00 | 0.50 | 0.10 | 2.00 | 0.67 | 0.50 |" in lines
    assert "| moons | 0.03 | 4.00 | 7.00 | 4.00 | – |" in lines
    assert "| moons | 0.03 | 4.00 | 4.00 | – | 4.00 |" in lines
