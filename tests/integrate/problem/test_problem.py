import pytest
import torch

from dise import RK4, Dopri5, Euler
from dise.integrate.problem.problem import Problem
from dise.integrate.problem.requests import Request, merge
from dise.integrate.problem.run import Run
from dise.integrate.problem.state import Layout, leaves

# ---- Layout


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize(
    "y",
    [
        torch.arange(6.0).view(2, 3),
        torch.arange(24.0).view(2, 3, 2, 2).permute(0, 2, 3, 1),
        torch.arange(2.0),
        torch.zeros(0, 3),
        (torch.arange(6.0).view(2, 3), torch.arange(8.0).view(2, 2, 2), torch.arange(2.0)),
        (torch.arange(6.0).view(2, 3),),
        {"b": torch.arange(6.0).view(2, 3), "a": torch.arange(8.0).view(2, 2, 2)},
        torch.arange(6.0, dtype=torch.bfloat16).view(2, 3),
        (1j * torch.arange(6.0).view(2, 3), 1j * torch.arange(2.0)),
    ],
    ids=lambda y: type(y).__name__,
)
def test_pack_and_unpack_are_inverse(y, batched):
    layout = Layout.of(y, batched=batched)
    packed = layout.pack(y)
    first = leaves(y)[0]
    assert packed.dtype == (torch.float32 if first.dtype == torch.bfloat16 else first.dtype)
    assert packed.ndim == 2
    assert len(packed) == (len(first) if batched else 1)
    back = layout.unpack(packed)
    assert type(back) is type(y)
    assert [part.dtype for part in leaves(back)] == [part.dtype for part in leaves(y)]
    torch.testing.assert_close(back, y, rtol=0, atol=0)


def test_a_sample_is_a_row():
    layout = Layout.of((torch.zeros(2, 2), torch.zeros(2, 1, 1)), batched=True)
    packed = layout.pack((torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[[5.0]], [[6.0]]])))
    assert packed.tolist() == [[1, 2, 5], [3, 4, 6]]


@pytest.mark.parametrize(
    ("y", "shape"),
    [
        (torch.zeros(2, 3), (2, 1)),
        (torch.zeros(2, 3, 4, 5), (2, 1, 1, 1)),
        (torch.zeros(2), (2,)),
        ((torch.zeros(2, 3, 4), torch.zeros(2, 1)), (2, 1, 1)),
    ],
)
def test_time_broadcasts_against_the_first_state(y, shape):
    assert Layout.of(y, batched=True).time(torch.zeros(2)).shape == shape
    assert Layout.of(y, batched=False).time(torch.zeros(1)).shape == ()


def test_a_dict_is_packed_by_name():
    layout = Layout.of({"b": torch.zeros(2, 1), "a": torch.zeros(2, 2)}, batched=True)
    packed = layout.pack({"a": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "b": torch.tensor([[5.0], [6.0]])})
    assert packed.tolist() == [[5, 1, 2], [6, 3, 4]]
    assert list(layout.unpack(packed)) == ["b", "a"]


def test_norm_is_the_rms_and_of_tuples_the_largest():
    norm = Layout.of(torch.zeros(1, 2), batched=True).norm
    torch.testing.assert_close(norm(torch.tensor([[3.0, 4.0], [0.0, 0.0]])), torch.tensor([12.5**0.5, 0.0]))
    norm = Layout.of((torch.zeros(1, 2), torch.zeros(1, 1)), batched=True).norm
    x = torch.tensor([[3.0, 4.0, 1.0], [3.0, 4.0, -9.0]])
    torch.testing.assert_close(norm(x), torch.tensor([12.5**0.5, 9.0]))


# ---- merge: integrations in lockstep


def problem(y0, t1=1.0):
    n = len(y0)
    ends = torch.full((n,), t1, dtype=torch.float64)
    return Problem(y0=y0, t0=torch.zeros_like(ends), t1=ends, layout=Layout.of(y0, batched=True))


def drive(integration, f, n):
    """The result, and which rows each call of f was for."""
    calls, answer = [], None
    while True:
        try:
            request = next(integration) if answer is None else integration.send(answer)
        except StopIteration as stop:
            return stop.value, calls
        calls.append(list(range(n)) if request.rows is None else request.rows.tolist())
        answer = f(request.t[:, None], request.y)


@pytest.mark.parametrize("drop_finished", [False, True])
@pytest.mark.parametrize(
    "integrators", [(Euler(3), RK4(2)), (RK4(1), Dopri5(rtol=1e-6, atol=1e-6)), (Euler(1), Dopri5(), RK4(2))]
)
def test_merged_integrations_are_the_separate_ones_in_fewer_calls(tanh_field, starts, integrators, drop_finished):
    f, y0 = tanh_field(2).requires_grad_(False), starts(6, 2)
    rows = [torch.arange(6)[i :: len(integrators)].flip(0) for i in range(len(integrators))]
    whole, run = problem(y0), Run(drop_finished=drop_finished)
    separate = [
        drive(integrator.integrate(whole.take(own), run), f, len(own))
        for own, integrator in zip(rows, integrators, strict=True)
    ]
    parts = [
        (own, integrator.integrate(whole.take(own), run)) for own, integrator in zip(rows, integrators, strict=True)
    ]
    results, calls = drive(merge(parts), f, 6)
    for merged, (alone, _) in zip(results, separate, strict=True):
        torch.testing.assert_close(merged._asdict(), alone._asdict(), rtol=1e-13, atol=1e-13, equal_nan=True)
    assert len(calls) == max(len(own_calls) for _, own_calls in separate)
    assert sum(map(len, calls)) == sum(len(call) for _, own_calls in separate for call in own_calls)
    assert sorted(calls[0]) == list(range(6))


def test_a_known_first_stage_is_not_asked_for_again(tanh_field, starts):
    f, y0 = tanh_field(2).requires_grad_(False), starts(4, 2)
    whole, rows = problem(y0), torch.tensor([3, 1])
    k1 = f(whole.t0[:, None], y0)
    expected, calls = drive(RK4(1).integrate(whole.take(rows), Run()), f, 2)
    result, fewer = drive(RK4(1).integrate(whole.take(rows, k1), Run()), f, 2)
    assert (len(calls), len(fewer)) == (4, 3)
    torch.testing.assert_close(result.y, expected.y, rtol=0, atol=0)


def test_merge_passes_what_is_left_through():
    def ask(n):
        total = 0
        for i in range(n):
            total += (yield Request(None, torch.zeros(1), torch.full((1, 1), float(i)))).item()
        return total

    answers, calls = drive(merge([(torch.tensor([1]), ask(3)), (torch.tensor([0]), ask(0))]), lambda t, y: -y, 2)
    assert answers == [-3, 0]
    assert calls == [[1], [1], [1]]
