"""What an error is measured in: tolerances and norms."""

import pytest
import torch
from torch.testing import assert_close

from dise import Dopri5, Status, max_norm, rms_norm, solve


def row(*values):
    return torch.tensor(values, dtype=torch.float64)


def decays(t, y):
    return -y


# ---- tolerances


def spiral(t, y):
    return torch.stack([-y[:, 0], 1e-3 * torch.sin(30 * t[:, 0]) - y[:, 1], 1e2 * torch.cos(t[:, 0]) - y[:, 2]], 1)


def test_one_number_is_that_number_for_every_feature():
    y0 = torch.ones(2, 3, dtype=torch.float64)
    one = solve(spiral, y0, 0.0, 1.0, Dopri5(rtol=1e-4, atol=1e-5))
    for each in (
        torch.full((3,), 1e-4, dtype=torch.float64),
        [1e-4] * 3,
        (1e-4, 1e-4, 1e-4),
        torch.tensor(1e-4).double(),
    ):
        same = solve(spiral, y0, 0.0, 1.0, Dopri5(rtol=each, atol=torch.full((1,), 1e-5, dtype=torch.float64)))
        assert_close(same.error, one.error, rtol=1e-6, atol=1e-12)
        assert same.n_steps.tolist() == one.n_steps.tolist()


def test_a_features_own_tolerance_scales_its_own_error():
    """f / c with atol · c is f with atol, whatever c is per feature."""
    c = row(1.0, 1e-3, 1e2)
    y0 = torch.ones(2, 3, dtype=torch.float64)
    plain = solve(lambda t, y: torch.sin(3 * t + y.flip(1)), y0, 0.0, 2.0, Dopri5(rtol=0, atol=1e-6))
    scaled = solve(lambda t, y: c * torch.sin(3 * t + (y / c).flip(1)), c * y0, 0.0, 2.0, Dopri5(rtol=0, atol=1e-6 * c))
    assert scaled.n_steps.tolist() == plain.n_steps.tolist()
    assert_close(scaled.error, plain.error)
    assert_close(scaled.y, plain.y * c)


def test_tolerances_broadcast_to_a_sample():
    """Per channel of an image [C, H, W]."""
    y0 = torch.rand(2, 3, 4, 4, dtype=torch.float64)
    per_channel = torch.tensor([1e-3, 1e-5, 1e-7], dtype=torch.float64)[:, None, None]
    f = lambda t, y: torch.sin(5 * y) + t  # noqa: E731
    shaped = solve(f, y0, 0.0, 1.0, Dopri5(atol=per_channel, rtol=0))
    flat = solve(
        lambda t, y: f(t, y), y0.flatten(1), 0.0, 1.0, Dopri5(atol=per_channel.expand(3, 4, 4).reshape(-1), rtol=0)
    )
    assert shaped.n_steps.tolist() == flat.n_steps.tolist()
    assert_close(shaped.y.flatten(1), flat.y)


def coupled(t, y):
    a, b = (y["a"], y["b"]) if isinstance(y, dict) else y
    da, db = torch.sin(5 * a) + b.mean(dim=(1, 2))[:, None], torch.cos(3 * b) * a[:, :2, None]
    return {"b": db, "a": da} if isinstance(y, dict) else (da, db)


def test_each_tensor_of_a_tuple_or_dict_has_its_own():
    a, b = torch.rand(2, 3, dtype=torch.float64), torch.rand(2, 2, 2, dtype=torch.float64)
    of_b = torch.tensor([1e-6, 1e-4], dtype=torch.float64)
    as_tuple = solve(coupled, (a, b), 0.0, 1.0, Dopri5(atol=(1e-3, of_b), rtol=(0, 1e-6)))
    as_dict = solve(coupled, {"a": a, "b": b}, 0.0, 1.0, Dopri5(atol={"b": of_b, "a": 1e-3}, rtol={"a": 0, "b": 1e-6}))
    other = solve(coupled, (a, b), 0.0, 1.0, Dopri5(atol=(1e-3, 1e-3), rtol=0))
    assert_close(as_dict.error, as_tuple.error)
    assert_close((as_dict.y["a"], as_dict.y["b"]), as_tuple.y)
    assert (as_tuple.n_steps > other.n_steps).all()


def test_tolerances_in_inference_mode_serve_training_too():
    tolerance, y0 = torch.tensor([1.23e-4, 4.56e-5], dtype=torch.float64), torch.ones(2, 2, dtype=torch.float64)
    with torch.inference_mode():
        solve(decays, y0, 0.0, 1.0, Dopri5(atol=tolerance))
    y0.requires_grad_()
    solve(decays, y0, 0.0, 1.0, Dopri5(atol=tolerance)).error.sum().backward()
    assert y0.grad.isfinite().all()


@pytest.mark.parametrize(
    ("y0", "tolerance", "message"),
    [
        (torch.ones(2, 3), (1e-3, 1e-3), r"atol: expected numbers that broadcast to \(3,\), got \(0.001, 0.001\)"),
        (torch.ones(2, 3), torch.ones(2, 3), r"atol: expected numbers that broadcast to \(3,\)"),
        (torch.ones(2, 3), {"a": 1e-3}, "atol: expected numbers that broadcast"),
        (torch.ones(2, 3), ((1e-3, 1e-3), 1e-3, 1e-3), "atol: expected numbers that broadcast"),
        ((torch.ones(2, 3), torch.ones(2)), (1e-3,), "atol: expected one for each of the state's 2 tensors"),
        ((torch.ones(2, 3), torch.ones(2)), (1e-3, (1.0, 2.0)), r"atol: expected numbers that broadcast to \(\)"),
        ({"a": torch.ones(2, 3)}, {"b": 1e-3}, r"atol: expected a number or a dict with the state's keys \('a',\)"),
        ({"a": torch.ones(2, 3)}, (1e-3, 1e-3, 1e-3), "atol: expected a number or a dict"),
        ({"a": torch.ones(2, 3)}, (), "atol: expected a number or a dict"),
    ],
)  # fmt: skip
def test_a_tolerance_that_does_not_fit_the_state_is_named(y0, tolerance, message):
    f = lambda t, y: {"a": y["a"]} if isinstance(y, dict) else y  # noqa: E731
    with pytest.raises(ValueError, match=message):
        solve(f, y0, 0.0, 1.0, Dopri5(atol=tolerance))


# ---- norms


def test_norms_by_hand():
    x = torch.tensor([[3.0, -4.0], [0.0, 0.0]])
    assert_close(rms_norm(x), torch.tensor([12.5**0.5, 0.0]))
    assert_close(max_norm(x), torch.tensor([4.0, 0.0]))
    state = {"a": x, "b": torch.tensor([[[1.0]], [[-9.0]]]), "c": torch.tensor([5.0, 1.0])}
    assert_close(rms_norm(state), torch.tensor([5.0, 9.0]))
    assert_close(max_norm(tuple(state.values())), torch.tensor([5.0, 9.0]))


def test_the_max_norm_is_of_the_largest_component():
    """One active feature of many: the RMS is smaller by the root of their number, the maximum is not."""
    y0 = torch.zeros(1, 100, dtype=torch.float64)
    f = lambda t, y: torch.cat([torch.sin(9 * t), torch.zeros_like(y[:, 1:])], 1)  # noqa: E731
    one = {"rtol": 0, "atol": 1e9, "first_step": "span"}
    of_max = solve(f, y0, 0.0, 1.0, Dopri5(norm=max_norm, **one)).error
    of_rms = solve(f, y0, 0.0, 1.0, Dopri5(norm=rms_norm, **one)).error
    assert_close(of_max, 10 * of_rms)


@pytest.mark.parametrize("batched", [True, False])
def test_a_norm_sees_the_states_structure(batched):
    """[n, ...] of those that run; n = 1 if the batch is one system."""
    seen = []

    def norm(error):
        seen.append((type(error), {name: tuple(part.shape[1:]) for name, part in error.items()}, error["b"].dtype))
        return error["a"].flatten(1).amax(1)

    state = {"a": torch.rand(2, 3), "b": torch.rand(2, 2, 2)}
    solution = solve(coupled, state, 0.0, 1.0, Dopri5(norm=norm, rtol=1e-4), batched=batched)
    shapes = {"a": (3,), "b": (2, 2)} if batched else {"a": (2, 3), "b": (2, 2, 2)}
    assert all(entry == (dict, shapes, torch.float32) for entry in seen)
    assert solution.status.eq(Status.SUCCESS).all()


def test_a_norm_may_leave_a_part_of_the_state_out():
    """The seminorm of an adjoint, or of a flow whose density may be coarse."""
    y0 = (torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64))
    f = lambda t, y: (-y[0], torch.sin(200 * t))  # noqa: E731
    first = lambda error: rms_norm(error[0])  # noqa: E731
    only = solve(f, y0, 0.0, 1.0, Dopri5(rtol=1e-6, atol=1e-6, norm=first))
    alone = solve(decays, y0[0], 0.0, 1.0, Dopri5(rtol=1e-6, atol=1e-6))
    assert only.n_steps == alone.n_steps < solve(f, y0, 0.0, 1.0, Dopri5(rtol=1e-6, atol=1e-6)).n_steps
    assert_close(only.y[0], alone.y)


@pytest.mark.parametrize(
    ("norm", "got"),
    [
        (lambda error: error.abs().max(), r"torch.float64 of shape \(\)"),
        (lambda error: error, r"torch.float64 of shape \(2, 3\)"),
        (lambda error: error.sum(1) > 1, r"torch.bool of shape \(2,\)"),
        (lambda error: 1.0, "float"),
    ],
)
def test_what_a_norm_returns_is_checked(norm, got):
    with pytest.raises(ValueError, match=rf"norm: expected one real number per sample, shape \(2,\), got {got}"):
        solve(decays, torch.ones(2, 3, dtype=torch.float64), 0.0, 1.0, Dopri5(norm=norm))
