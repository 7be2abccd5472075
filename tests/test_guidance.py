"""Predictions of diffusion models as fields, and guidance, against closed forms and loops written by hand."""

import pytest
import torch
from torch import nn

import dise
from dise import (
    CosinePath,
    Euler,
    Guided,
    Midpoint,
    Multistep,
    PathField,
    StraightPath,
    VarianceExplodingPath,
    VariancePreservingPath,
)

DOUBLE = torch.float64
PATHS = [
    StraightPath(),
    StraightPath(0),
    VariancePreservingPath(),
    VarianceExplodingPath(0.1, 20.0),
    CosinePath(),
    CosinePath(1),
]


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_slopes_are_derivatives(path):
    t = torch.tensor([0.1, 0.35, 0.8], dtype=DOUBLE) * max(path.span)
    for coefficient, slope in ((path.alpha, path.alpha_slope), (path.sigma, path.sigma_slope)):
        _, derivative = torch.func.jvp(coefficient, (t,), (torch.ones_like(t),))
        torch.testing.assert_close(slope(t), derivative)


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_noise_and_data_are_at_the_ends(path):
    noise, data = (torch.tensor(t, dtype=DOUBLE) for t in path.span)
    assert path.alpha(data) / path.sigma(data).clamp(min=1e-12) > 5
    assert path.alpha(noise) / path.sigma(noise) < 0.1
    if not isinstance(path, StraightPath | VarianceExplodingPath):
        torch.testing.assert_close(path.alpha(noise) ** 2 + path.sigma(noise) ** 2, torch.ones((), dtype=DOUBLE))


def gaussian(path, kind):
    """The exact prediction for data N(1, ½²) at a point of a path."""

    def predict(t, x):
        alpha, sigma = path.alpha(t), path.sigma(t)
        variance = alpha**2 / 4 + sigma**2
        score = -(x - alpha) / variance
        noise = -sigma * score
        data = 1 + alpha / 4 / variance * (x - alpha)
        velocity = path.alpha_slope(t) * data + path.sigma_slope(t) * noise
        v = alpha * noise - sigma * data
        return {"velocity": velocity, "data": data, "noise": noise, "score": score, "v": v}[kind]

    return predict


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("kind", ["velocity", "data", "noise", "score", "v"])
def test_every_prediction_gives_the_field_of_a_gaussian(kind, path):
    """The probability flow maps N(α, α²/4 + σ²) to itself along the path, so its solution is known."""
    field = PathField(gaussian(path, kind), path, predicts=kind)
    noise, data = path.span
    start, end = (torch.tensor(noise + s * (data - noise), dtype=DOUBLE) for s in (0.05, 0.95))
    z = torch.linspace(-2, 2, 5, dtype=DOUBLE)[:, None]
    deviation = lambda t: (path.alpha(t) ** 2 / 4 + path.sigma(t) ** 2).sqrt()  # noqa: E731
    solution = dise.solve(
        field, path.alpha(start) + deviation(start) * z, start, end, dise.Dopri5(rtol=1e-9, atol=1e-9)
    )
    torch.testing.assert_close(solution.y, path.alpha(end) + deviation(end) * z, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["velocity", "data", "noise", "score", "v"])
@pytest.mark.parametrize("wrong", [lambda x: x[:, :1], lambda x: x.sum(), lambda x: (x,), lambda x: None])
def test_predictions_that_would_broadcast_are_refused(kind, wrong):
    field = PathField(lambda t, x: wrong(x), CosinePath(), predicts=kind)
    with pytest.raises(ValueError, match=r"network: expected a prediction like x \(2, 3\), got"):
        field(torch.full((2, 1), 0.5), torch.zeros(2, 3))


def test_a_network_may_have_times_of_its_own():
    seen = []
    field = PathField(lambda t, x: seen.append(t) or x, CosinePath(), predicts="noise", time_scale=1000.0)
    field(torch.full((2, 1), 0.5), torch.zeros(2, 3))
    assert seen[0].flatten().tolist() == [500.0, 500.0]


class Conditional(nn.Module):
    """A field with a label (a long) and a vector as conditions; keeps how it was called."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(4, 2).double()
        self.rows = []

    def forward(self, t, y, label, vector):
        self.rows.append(len(y))
        return torch.sin(y + self.embedding(label) + t) + vector


Y0 = torch.tensor([[1.0, 0.3], [0.2, -1.0], [2.0, 0.1]], dtype=DOUBLE)
CONDITIONS = (torch.tensor([0, 1, 2]), torch.tensor([[0.5, 0.1], [0.0, 0.0], [-1.0, 2.0]], dtype=DOUBLE))
NULL = (3, torch.zeros(2, dtype=DOUBLE))


def hand_written(f, y, steps, combine, interval=(0.0, 1.0)):
    """Euler's method with guidance in an interval of time."""
    null = tuple(n.to(c).expand_as(c) for n, c in zip(map(torch.as_tensor, NULL), CONDITIONS, strict=True))
    for k in range(steps):
        t = torch.full((len(y), 1), k / steps, dtype=DOUBLE)
        v_c, v_u = f(t, y, *CONDITIONS), f(t, y, *null)
        on = interval[0] <= k / steps <= interval[1]
        y = y + (combine(v_c, v_u) if on else v_c) / steps
    return y


@pytest.mark.parametrize(
    ("rule", "combine"),
    [("mix", lambda c, u: u + 3.0 * (c - u)), ("push", lambda c, u: (1 + 3.0) * c - 3.0 * u)],
)
@pytest.mark.parametrize("interval", [None, (0.25, 0.6), (2.0, 3.0)])
def test_guidance_is_the_loop_by_hand(rule, combine, interval):
    f = Conditional()
    expected = hand_written(f, Y0, 8, combine, interval or (0.0, 1.0))
    guided = Guided(f, 3.0, null=NULL, rule=rule, interval=interval)
    solution = dise.solve(guided, Y0, 0.0, 1.0, Euler(8), sample_args=CONDITIONS)
    torch.testing.assert_close(solution.y, expected, rtol=1e-12, atol=1e-12)
    assert solution.nfe.tolist() == [8, 8, 8]


def test_both_values_come_from_one_call_and_are_counted_apart_from_nfe():
    f = Conditional()
    with Guided(f, 2.0, null=NULL).counting() as calls:
        pass
    guided = Guided(f, 2.0, null=NULL)
    with guided.counting() as calls:
        solution = dise.solve(guided, Y0, 0.0, 1.0, Multistep.adams(6), sample_args=CONDITIONS)
    assert (calls.calls, calls.rows) == (6, 36)
    assert f.rows == [6] * 6
    assert solution.nfe.tolist() == [6, 6, 6]


def test_an_interval_of_half_the_steps_saves_half_of_the_second_calls():
    guided = Guided(Conditional(), 2.0, null=NULL, interval=(0.0, 0.49))
    with guided.counting() as calls:
        dise.solve(guided, Y0, 0.0, 1.0, Multistep.adams(8), sample_args=CONDITIONS)
    assert calls.rows == 1.5 * 8 * 3


def test_rows_at_different_times_are_guided_on_their_own():
    guided = Guided(Conditional(), 2.0, null=NULL, interval=(0.0, 0.5))
    t1 = torch.tensor([1.0, 0.5, 0.2], dtype=DOUBLE)
    whole = dise.solve(guided, Y0, 0.0, t1, Midpoint(4), sample_args=CONDITIONS).y
    for i in range(3):
        own = tuple(condition[i : i + 1] for condition in CONDITIONS)
        alone = dise.solve(guided, Y0[i : i + 1], 0.0, t1[i : i + 1], Midpoint(4), sample_args=own).y
        torch.testing.assert_close(alone[0], whole[i], rtol=1e-12, atol=1e-12)


def test_no_guidance_needs_one_call():
    f = Conditional()
    for scale, rule in ((1.0, "mix"), (0.0, "push")):
        with Guided(f, scale, null=NULL, rule=rule).counting() as calls:
            pass
        guided = Guided(f, scale, null=NULL, rule=rule)
        with guided.counting() as calls:
            y = dise.solve(guided, Y0, 0.0, 1.0, Euler(4), sample_args=CONDITIONS).y
        assert calls.rows == 12
        torch.testing.assert_close(y, dise.solve(f, Y0, 0.0, 1.0, Euler(4), sample_args=CONDITIONS).y)


def test_a_whole_batch_as_one_system():
    guided = Guided(Conditional(), 2.0, null=NULL, interval=(0.0, 0.5))
    rows, one = (
        dise.solve(guided, Y0, 0.0, 1.0, Euler(4), sample_args=CONDITIONS, batched=batched).y
        for batched in (True, False)
    )
    torch.testing.assert_close(rows, one)


def test_gradients_reach_the_null_condition():
    f = Conditional()
    guided = Guided(f, 2.0, null=NULL)
    dise.solve(guided, Y0, 0.0, 1.0, Euler(4), sample_args=CONDITIONS).y.sum().backward()
    assert f.embedding.weight.grad[3].abs().sum() > 0


@pytest.mark.slow
def test_a_compiled_guided_field():
    f = Conditional()
    f.forward = lambda t, y, label, vector: torch.sin(y + f.embedding(label) + t) + vector
    guided = Guided(f, 2.0, null=NULL, interval=(0.2, 0.6))
    eager, compiled = (
        dise.solve(guided, Y0, 0.0, 1.0, Euler(4), sample_args=CONDITIONS, compile=c).y for c in (False, True)
    )
    torch.testing.assert_close(eager, compiled)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Guided(torch.sin, 2.0, null=(0,)), TypeError, "f: expected a module"),
        (lambda: Guided(Conditional(), "2", null=(0,)), TypeError, "scale: expected a number"),
        (lambda: Guided(Conditional(), 2.0, null=0), TypeError, "null: expected a tuple"),
        (
            lambda: Guided(Conditional(), 2.0, null=(None,)),
            TypeError,
            "null: expected a number or a tensor per condition",
        ),
        (lambda: Guided(Conditional(), 2.0, null=(0,), rule="add"), ValueError, "rule: expected 'mix' or 'push'"),
        (lambda: Guided(Conditional(), 2.0, null=(0,), interval=(1, 0)), ValueError, "interval: expected a lower"),
        (lambda: Guided(Conditional(), 2.0, null=(0,))(Y0, Y0, *CONDITIONS), ValueError, "null: expected a value per"),
        (lambda: PathField(torch.sin, StraightPath(), "image"), ValueError, "predicts: expected one of velocity, data"),
        (lambda: PathField(1, StraightPath()), TypeError, "network: expected a function"),
        (lambda: StraightPath(0.5), ValueError, "data_at: expected 0 or 1"),
        (lambda: VariancePreservingPath(1.0, 0.5), ValueError, "beta_max: expected a finite number above 1"),
    ],
)
def test_bad_arguments_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


class Label(nn.Module):
    """dy/dt is the label."""

    def forward(self, t, y, label):
        return label[:, None].to(y) * torch.ones_like(y)


def test_a_null_condition_that_labels_do_not_have_is_refused():
    """0.5 would become label 0; 2.0 is label 2, of weight 1 − scale."""
    y, labels = torch.zeros(3, 1), torch.tensor([0, 1, 5])
    with pytest.raises(ValueError, match=r"null: expected a value of the condition's torch.int64, got 0.5"):
        Guided(Label(), 3.0, null=(0.5,))(y, y, labels)
    assert Guided(Label(), 3.0, null=(2.0,))(y, y, labels)[:, 0].tolist() == [-4, -1, 11]
