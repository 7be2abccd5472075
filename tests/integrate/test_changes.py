"""Tensors that are changed in place between the forward pass and a backward pass that calls f again."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.autograd import grad
from torch.testing import assert_close

from dise import Backsolve, Dopri5, solve
from dise.integrate.problem.changes import Changes
from dise.torchdiffeq import odeint_adjoint

TIGHT = Dopri5(rtol=1e-9, atol=1e-9)
WEIGHT = torch.tensor([[0.1, 0.5], [-0.7, 0.2]], dtype=torch.float64)
GLOBAL = WEIGHT.clone()
GLOBALS = {"weight": GLOBAL}
Y0 = torch.tensor([[1.0, 2.0], [0.5, -1.0]], dtype=torch.float64)
TIMES = torch.tensor([0.0, 1.0], dtype=torch.float64)
again = pytest.mark.parametrize("way", ["checkpoint", "backsolve", "odeint_adjoint"])


class Layer(nn.Module):
    """A field whose weight is a parameter and whose shift is a buffer; it has tensors that it does not use."""

    def __init__(self, *, trainable):
        super().__init__()
        self.weight = nn.Parameter(WEIGHT.clone(), requires_grad=trainable)
        self.register_buffer("shift", torch.zeros(2, dtype=torch.float64))
        self.other, self.parts = nn.BatchNorm1d(2).double(), [torch.ones(2, dtype=torch.float64)]

    def forward(self, t, y):
        return torch.tanh(y @ self.weight + self.shift) * self.parts[0]


class Held:
    def __init__(self, weight):
        self.weight = weight

    def __call__(self, t, y):
        return torch.tanh(y @ self.weight)


HELD = Held(GLOBAL)


def of_the_file(t, y):
    return torch.tanh(y @ GLOBAL)


def of_a_dict_of_the_file(t, y):
    return torch.tanh(y @ GLOBALS["weight"])


def in_a_comprehension(t, y):
    return torch.stack([torch.tanh(row @ GLOBAL) for row in y])


def of_an_object_of_the_file(t, y):
    return HELD(t, y)


def with_a_weight(t, y, weight):
    return torch.tanh(y @ weight)


def with_a_weight_in_a_dict(t, y, weights):
    return torch.tanh(y @ weights["weight"])


def with_a_factor(t, y, factor):
    return torch.tanh(y * factor)


def in_a_closure(trainable):
    weight = WEIGHT.clone().requires_grad_(trainable)
    return lambda t, y: torch.tanh(y @ weight), weight, {}


def in_a_module(trainable, name="weight"):
    f = Layer(trainable=trainable)
    return f, getattr(f, name) if name != "parts" else f.parts[0], {}


def in_a_script(trainable):
    layer = nn.Linear(2, 2).double().requires_grad_(trainable)
    script = torch.jit.trace(layer, Y0)
    return lambda t, y: torch.tanh(script(y)), layer.weight, {}


def in_an_argument(trainable):
    weight = WEIGHT.clone().requires_grad_(trainable)
    return with_a_weight, weight, {"args": (weight,)}


def in_an_arguments_dict(trainable):
    weight = WEIGHT.clone().requires_grad_(trainable)
    return with_a_weight_in_a_dict, weight, {"args": ({"weight": weight},)}


def in_a_sample_argument(trainable):
    factor = torch.ones(2, 2, dtype=torch.float64, requires_grad=trainable)
    return with_a_factor, factor, {"sample_args": (factor,)}


def in_an_object(trainable):
    f = Held(WEIGHT.clone().requires_grad_(trainable))
    return f, f.weight, {}


def in_a_partial(trainable):
    weight = WEIGHT.clone().requires_grad_(trainable)
    return partial(lambda weight, t, y: torch.tanh(y @ weight), weight), weight, {}


# how f has a tensor, and what an error calls it
PLACES = {
    "a closure": (in_a_closure, "f: a tensor"),
    "a parameter": (in_a_module, "f: its tensor weight"),
    "a buffer": (partial(in_a_module, name="shift"), "f: its tensor shift"),
    "a list of a module": (partial(in_a_module, name="parts"), "f: a tensor"),
    "a script": (in_a_script, "f: a tensor"),
    "an argument": (in_an_argument, r"args\[0\]: the tensor"),
    "a dict": (in_an_arguments_dict, "f: a tensor"),
    "a sample's argument": (in_a_sample_argument, r"sample_args\[0\]: the tensor"),
    "an object": (in_an_object, "f: its tensor weight"),
    "a partial": (in_a_partial, "f: a tensor"),
    "the file": (lambda trainable: (of_the_file, GLOBAL, {}), "f: a tensor"),
    "a dict of the file": (lambda trainable: (of_a_dict_of_the_file, GLOBAL, {}), "f: a tensor"),
    "a comprehension": (lambda trainable: (in_a_comprehension, GLOBAL, {}), "f: a tensor"),
    "an object of the file": (lambda trainable: (of_an_object_of_the_file, GLOBAL, {}), "f: its tensor weight"),
}


def solved(f, way, y0=Y0, **options):
    """[B, F] the state at 1, and what has its gradient."""
    y0 = y0.clone().requires_grad_()
    if way == "odeint_adjoint":
        params = None if isinstance(f, nn.Module) else ()
        return odeint_adjoint(f, y0, TIMES, rtol=1e-9, atol=1e-9, adjoint_params=params)[-1], y0
    return solve(f, y0, 0.0, 1.0, TIGHT, gradient=way, **options).y, y0


def change(x):
    with torch.no_grad():
        x.mul_(3)


@again
@pytest.mark.parametrize("trainable", [True, False], ids=["trainable", "frozen"])
@pytest.mark.parametrize("place", PLACES)
def test_a_changed_tensor_is_named(place, trainable, way):
    make, subject = PLACES[place]
    f, tensor, options = make(trainable)
    if way == "odeint_adjoint" and options:
        pytest.skip("odeint_adjoint has no further arguments of f")
    y, _ = solved(f, way, **options)
    change(tensor)
    shape = ", ".join(str(n) for n in tensor.shape)
    ours = rf"^{subject} of shape \({shape},?\) was changed in place after the forward"
    # odeint_adjoint's parameters are torch's to watch
    with pytest.raises(RuntimeError, match=rf"{ours}|modified by an inplace" if way == "odeint_adjoint" else ours):
        y.sum().backward()
    change(tensor.data.div_(9))  # of the file's tensor other tests want the values


@again
def test_tensors_that_f_does_not_read_may_change(way):
    """Statistics of another layer, and an optimizer's step of another part of the model."""
    f = Layer(trainable=False)
    y, y0 = solved(lambda t, y: f(t, y), way)
    f.other(torch.randn(5, 2, dtype=torch.float64))
    change(f.other.weight)
    assert_close(grad(y.sum(), y0)[0], grad(*_direct(f))[0], rtol=1e-6, atol=1e-6)


def _direct(f):
    y, y0 = solved(f, "direct")
    return y.sum(), y0


class Counts(Layer):
    """Normalizes by the batch, and counts its calls in a tensor."""

    def __init__(self):
        super().__init__(trainable=True)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, t, y):
        self.calls += 1
        return self.other(super().forward(t, y))


@again
def test_what_f_itself_changes_may_change(way):
    """Statistics and counters, here by another solve with the same f."""
    y0 = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    f, options = Counts(), {"batched": False}

    def gradient(way, between):
        y, start = solved(f, way, y0, **({} if way == "odeint_adjoint" else options))
        between()
        return grad(y[:, 0].square().sum(), start)[0]

    expected = gradient("direct", lambda: None)
    assert_close(gradient(way, lambda: solved(f, "direct", y0, **options)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("gradient", ["direct", "checkpoint", "backsolve"])
def test_a_changed_state_is_an_error(gradient):
    """y0 has no gradient; the weight's depends on it."""
    weight, y0 = WEIGHT.clone().requires_grad_(), Y0.clone()
    y = solve(lambda t, y: torch.tanh(y @ weight), y0, 0.0, 1.0, TIGHT, gradient=gradient).y
    change(y0)
    with pytest.raises(RuntimeError, match=r"in.?place"):
        y.sum().backward()


@pytest.mark.parametrize("gradient", ["direct", "checkpoint", "backsolve"])
def test_a_changed_end_is_an_error_or_makes_no_difference(gradient):
    def gradient_after(action):
        weight, t1 = WEIGHT.clone().requires_grad_(), torch.ones(2, dtype=torch.float64)
        y = solve(lambda t, y: torch.tanh(y @ weight), Y0, 0.0, t1, TIGHT, gradient=gradient).y
        action(t1)
        return grad(y.sum(), weight)[0]

    expected = gradient_after(lambda t1: None)
    if gradient == "checkpoint":
        with pytest.raises(RuntimeError, match=r"^t1: the tensor of shape \(2,\) was changed in place"):
            gradient_after(change)
    else:
        assert torch.equal(gradient_after(change), expected)


@pytest.mark.parametrize("way", ["checkpoint", "backsolve"])
def test_a_tensor_that_is_read_later_only(way):
    """At the start f does not depend on it."""
    weight = torch.ones(2, dtype=torch.float64)
    f = lambda t, y: -y * weight if t > 0.5 else -y  # noqa: E731
    y, _ = solved(f, way, batched=False)
    change(weight)
    with pytest.raises(RuntimeError, match=r"^f: a tensor of shape \(2,\) was changed"):
        y.sum().backward()


def test_a_named_parameter_that_dise_cannot_find():
    """Its values are in an object that dise does not follow, so torch watches it."""

    class Slots:
        __slots__ = ("weight",)

    slots = Slots()
    slots.weight = WEIGHT.clone().requires_grad_()
    f, gradient = lambda t, y: torch.tanh(y @ slots.weight), Backsolve(params=[slots.weight])
    y = solve(f, Y0, 0.0, 1.0, TIGHT, gradient=gradient).y
    change(slots.weight)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("fails", [ImportError, ValueError])
def test_where_reads_cannot_be_seen_a_change_is_an_error(monkeypatch, fails):
    """Without torch's dispatch modes, or with a function that cannot be called in one."""
    x, y = torch.ones(2), torch.ones(3)
    changes = Changes([("x: the tensor", x), ("y: the tensor", y)])
    changes.end_forward()
    changes.check_reads(lambda: pytest.fail("nothing was changed"))
    y.add_(1)
    changes.check_reads(lambda: x + 1)

    def evaluate():
        raise fails

    if fails is ImportError:
        monkeypatch.setitem(__import__("sys").modules, "dise.integrate.problem.reads", None)
    with pytest.raises(RuntimeError, match=r"^y: the tensor of shape \(3,\)"):
        changes.check_reads(evaluate)


def test_looking_for_reads_draws_no_random_numbers():
    x = torch.ones(2)
    changes = Changes([("x: the tensor", x)])
    changes.end_forward()
    x.add_(1)
    state = torch.random.get_rng_state()
    changes.check_reads(lambda: torch.rand(3))
    assert torch.equal(torch.random.get_rng_state(), state)
