"""An f that mixes the samples of a batch is noticed where finished samples leave it."""

import pytest
import torch
from torch import nn

import dise

ADAPTIVE = dise.Dopri5(rtol=1e-4, atol=1e-4)
Y0 = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)) * torch.logspace(-1, 1, 8)[:, None]
ENDS = torch.linspace(0.5, 3.0, 8)


class Field(nn.Module):
    """y' = network(y) − y³/3, with a count of the rows of each call."""

    def __init__(self, *between: nn.Module):
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(3, 16), *between, nn.Tanh(), nn.Linear(16, 3))
        self.rows = []

    def forward(self, t, y):
        self.rows.append(len(y))
        return self.network(y) - y**3 / 3


class HalfField(Field):
    """A float32 field whose network computes in bfloat16."""

    def forward(self, t, y):
        return self.network.bfloat16()(y.bfloat16()).float() - y


def batch_mean(t, y):
    return y.mean(0, keepdim=True) - y**3


def time_of_the_first_row(t, y):
    return torch.cos(t[0]) * y - y**3


def neighbours(t, y):
    return torch.roll(y, 1, 0) - y**3


def solve(f, **options):
    return dise.solve(f, Y0, 0.0, 3.0, ADAPTIVE, **options)


MIXING = [batch_mean, time_of_the_first_row, neighbours, Field(nn.BatchNorm1d(16))]


@pytest.mark.parametrize("gradient", ["direct", "checkpoint", "backsolve"])
@pytest.mark.parametrize("f", MIXING, ids=["mean", "t[0]", "roll", "batch norm"])
def test_mixing_is_an_error(f, gradient):
    for _ in range(2):  # an f that failed is not taken for one that passed
        with pytest.raises(ValueError, match=r"mixes the samples.*drop_finished=False.*batched=False"):
            solve(f, gradient=gradient)


@pytest.mark.parametrize("integrator", [dise.HeunEuler(rtol=1e-4, atol=1e-4), dise.Adams(rtol=1e-4, atol=1e-4)])
def test_every_adaptive_method_notices(integrator):
    with pytest.raises(ValueError, match="mixes the samples"):
        dise.solve(lambda t, y: y.mean(0, keepdim=True) - 3 * y, Y0, 0.0, ENDS, integrator)


def test_two_samples_of_which_one_remains():
    with pytest.raises(ValueError, match="for 1 of 2 samples"):
        dise.solve(lambda t, y: y.mean(0) - 3 * y, Y0[[0, 7]], 0.0, torch.tensor([1.0, 3.0]), ADAPTIVE)


@pytest.mark.parametrize("options", [{"drop_finished": False}, {"batched": False}])
def test_what_the_error_advises_works(options):
    assert bool((solve(batch_mean, **options).status == int(dise.Status.SUCCESS)).all())


def test_fixed_steps_need_no_check():
    assert bool(
        (
            dise.solve(lambda t, y: y.mean(0) - y, Y0, 0.0, ENDS, dise.RK4(steps=20)).status == int(dise.Status.SUCCESS)
        ).all()
    )


@pytest.mark.parametrize(
    "f",
    [Field(), Field(nn.BatchNorm1d(16)).eval(), Field(nn.LayerNorm(16)), Field(nn.Dropout(0.1)), HalfField()],
    ids=["linear", "evaluation", "layer norm", "dropout", "bfloat16"],
)
def test_samples_on_their_own_pass(f):
    assert bool((solve(f).status == int(dise.Status.SUCCESS)).all())


def test_spectral_normalization_changes_from_call_to_call_and_passes():
    f = Field()
    nn.utils.parametrizations.spectral_norm(f.network[0])
    assert bool((solve(f).status == int(dise.Status.SUCCESS)).all())


def test_one_more_call_once_for_an_f():
    f = Field()
    first = solve(f)
    calls, most = len(f.rows), f.rows.count(8)
    again = solve(f)
    assert calls == first.calls + 1
    assert len(f.rows) - calls == again.calls == first.calls
    assert most == f.rows[calls:].count(8) + 1  # all samples at once
    assert torch.equal(first.y, again.y)
    assert torch.equal(first.nfe, again.nfe)


def test_another_mode_is_another_f():
    f = Field(nn.BatchNorm1d(16)).eval()
    function = lambda t, y: f(t, y)  # noqa: E731
    solve(function)
    f.network.train()
    with pytest.raises(ValueError, match="mixes the samples"):
        solve(function)


def test_methods_of_one_object_are_told_apart():
    class Fields:
        def good(self, t, y):
            return -(y**3)

        def bad(self, t, y):
            return batch_mean(t, y)

    fields = Fields()
    solve(fields.good)
    with pytest.raises(ValueError, match="mixes the samples"):
        solve(fields.bad)


def test_random_numbers_are_as_without_the_check():
    values = []
    f = Field(nn.Dropout(0.1))
    for _ in range(2):
        torch.manual_seed(1)
        values.append((solve(f).y, torch.rand(1)))
    assert all(torch.equal(a, b) for a, b in zip(*values, strict=True))


def test_gradients_do_not_change():
    gradients = []
    f = Field()
    for gradient in ("direct", "checkpoint", "checkpoint", "direct"):
        solution = dise.solve(f, Y0.double(), 0.0, 3.0, ADAPTIVE, gradient=gradient) if f.double() else None
        gradients.append(torch.autograd.grad(solution.y.square().sum(), list(f.parameters())))
    for other in gradients[1:]:
        assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-12) for a, b in zip(gradients[0], other, strict=True))


def test_rows_with_arguments_of_their_own():
    rate = torch.linspace(0.5, 20.0, 8)[:, None]
    solution = dise.solve(lambda t, y, rate: -rate * y, Y0, 0.0, 1.0, ADAPTIVE, sample_args=(rate,))
    assert torch.allclose(solution.y, Y0 * torch.exp(-rate), atol=1e-2)
