"""Tables for a sampler to choose from, which differ in where their steps are short."""

import pytest
import torch

import dise
from dise.flow.certified.varied_tables import STEPS, varied_tables


def test_tables_are_all_different():
    tables = varied_tables()
    assert len({table.table for table in tables}) == len(tables) == 2 * len(STEPS) + 4 * (len(STEPS) - 1)


def test_evaluations_are_steps():
    assert [table.table.evaluations for table in varied_tables((2, 5))] == [5, 5, 2, 5, 2, 5, 5, 5]


def test_third_order_tables_integrate_slopes_that_are_linear_in_time():
    y = torch.zeros(1, 1, dtype=torch.float64)
    third = [table for table in varied_tables((4,)) if table.name.startswith("AB3")]
    assert len(third) == 4
    for table in third:
        end = dise.solve(lambda t, y: t.expand_as(y), y, 0.0, 2.0, table).y
        torch.testing.assert_close(end, torch.full_like(y, 2.0))


def test_steps_are_short_where_they_should_be():
    equal, shorter, longer, first = (
        torch.tensor([*table.table.times, 1.0], dtype=torch.float64).diff()
        for table in varied_tables((6,))
        if table.name.startswith("AB3")
    )
    torch.testing.assert_close(equal, torch.full_like(equal, 1 / 6))
    assert (shorter.diff() < 0).all()
    assert (longer.diff() > 0).all()
    torch.testing.assert_close(first, torch.tensor([1 / 11, *[2 / 11] * 5], dtype=torch.float64))


@pytest.mark.parametrize("steps", [(0,), (4, 2.0), (True,)])
def test_steps_are_checked(steps):
    with pytest.raises(ValueError, match="steps: expected a whole number"):
        varied_tables(steps)
