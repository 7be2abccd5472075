"""How often a dynamic solve waits for the device, and that it does not matter how large a batch is."""

import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from dise import RK4, Cascade, Dopri5, Dynamic, Euler, Midpoint, solve
from dise.integrate.problem.row_check import remember


class Reads(TorchDispatchMode):
    """Counts what makes the host wait for a device: reading a number, and lists whose length only the device knows."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.number = 0
        tolist = torch.Tensor.tolist

        def counted(tensor):
            self.number += 1
            return tolist(tensor)

        monkeypatch.setattr(torch.Tensor, "tolist", counted)  # on the CPU it is no operator

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.number += str(operator).split(".")[1] in ("_local_scalar_dense", "nonzero", "bincount", "equal", "unique")
        return operator(*args, **(kwargs or {}))


@pytest.fixture
def reads(monkeypatch):
    # as on a device that has to be waited for
    for module in ("dise.integrate.tracing", "dise.integrate.stepping.common_steps"):
        monkeypatch.setattr(f"{module}.on_host", lambda x: False)
    return Reads(monkeypatch)


def thirds(candidates):
    """The first third of a batch keeps the first candidate's answer, the second third the second's."""
    shares = iter(range(1, candidates))

    def accept(y):
        return y[:, -1] < next(shares)

    return accept


def numbered(number, candidates=3):
    """States whose last feature is 0, …, K − 1 and stays, and the field."""
    y0 = torch.randn(number, 3, generator=torch.Generator().manual_seed(0))
    kind = torch.arange(number) * candidates // number

    def f(t, y):
        return torch.cat([torch.tanh(y[:, :-1].flip(1)), torch.zeros_like(y[:, :1])], 1)

    remember(f, ())  # passes the check for mixed rows, whose comparison is read once per f
    return f, torch.cat([y0, kind[:, None].float()], 1)


FIXED = (Euler(1), Midpoint(1), RK4(2))


@torch.no_grad()
def test_a_cascade_reads_once_a_round_and_once_at_the_end(reads):
    f, y0 = numbered(30)
    with reads:
        solution = solve(f, y0, 0.0, 1.0, Cascade(FIXED, thirds(3)))
        number = reads.number
    assert solution.choice.unique().tolist() == [0, 1, 2]
    assert number == 2 + 1  # two judgements; whether all succeeded


@pytest.mark.host
@torch.no_grad()
def test_a_selectors_choices_are_read_once(reads):
    f, y0 = numbered(30)
    with reads:
        solution = solve(f, y0, 0.0, 1.0, Dynamic(FIXED, lambda h, k: (h[:, -1:] - torch.arange(3.0)).abs()))
        number = reads.number
    assert solution.choice.unique().tolist() == [0, 1, 2]
    assert number == 1 + 1


@torch.no_grad()
def test_an_adaptive_candidate_adds_a_read_a_round(reads):
    f, y0 = numbered(30)
    with reads:
        solution = solve(f, y0, 0.0, 1.0, Cascade((Euler(1), Dopri5()), thirds(2)))
        number = reads.number
    rounds = int(solution.n_steps[solution.choice == 1].max())
    assert rounds > 1
    assert number == 1 + (rounds + 1) + 1  # the judgement; before each step and after the last; whether all succeeded


@pytest.mark.parametrize("number", [1, 2, 3, 32, 100, 1000, 4096])
@torch.no_grad()
def test_batches_of_any_size(number):
    f, y0 = numbered(number)
    policies = {
        "cascade": Cascade(FIXED, thirds(3)),
        "dynamic": Dynamic(FIXED, lambda h, k: (h[:, -1:] - torch.arange(3.0)).abs()),
    }
    alone = torch.stack([solve(f, y0, 0.0, 1.0, candidate).y for candidate in FIXED], 1)
    kind = y0[:, -1].long()
    for policy in policies.values():
        solution = solve(f, y0, 0.0, 1.0, policy)
        assert torch.equal(solution.choice, kind)
        assert_close(solution.y, alone[torch.arange(number), kind])
