"""Arguments that are not what their annotations say are named, in every checked function and constructor."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jaxtyping
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dise
import dise.flow
import dise.select
from dise.integrate import annotations
from dise.integrate.annotations import Int, Shaped
from dise.integrate.argument_types import checked_arguments


@checked_arguments
def function(
    size: int = 1,
    share: float = 0.5,
    net: nn.Module | None = None,
    rule: Callable[[Tensor], Tensor] | Sequence[Callable[[Tensor], Tensor]] | None = None,
    values: Sequence[float] = (),
    data: Tensor | None = None,
    flag: bool = False,
    other: "Later | None" = None,
    *rest: int,
    **further: str,
) -> tuple[object, ...]:
    """All of its arguments."""
    return size, share, net, rule, values, data, flag, other, rest, further


@checked_arguments
@dataclass(frozen=True)
class Later:
    """A class that the function's annotations name before it is defined."""

    size: int
    share: float = 1.0


@pytest.mark.parametrize(
    "given",
    [
        {"size": 3, "share": 1, "values": [1, 2]},
        {"size": np.int64(3), "share": np.float32(0.5), "values": np.ones(3)},
        {"net": nn.Identity(), "rule": torch.sin, "values": torch.ones(2), "data": torch.ones(1), "flag": True},
        {"rule": [torch.sin, torch.cos], "other": Later(1)},
        {"net": None, "rule": None, "data": None, "unknown": 3},
    ],
)
def test_what_fits_is_passed_on(given):
    known = {name: value for name, value in given.items() if name != "unknown"}
    result = function(**given)
    names = ("size", "share", "net", "rule", "values", "data", "flag", "other")
    assert all(result[names.index(name)] is value for name, value in known.items())
    assert result[-1] == {name: value for name, value in given.items() if name == "unknown"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"size": 1.5}, "size: expected a whole number, got 1.5"),
        ({"size": True}, "size: expected a whole number, got True"),
        ({"share": "ab"}, "share: expected a number, got 'ab'"),
        ({"share": False}, "share: expected a number, got False"),
        ({"share": torch.ones(2)}, "share: expected a number, got Tensor"),
        ({"share": 10**400}, "share: expected a number, got 1000"),
        ({"net": 3}, "net: expected a Module or None, got 3"),
        ({"net": nn.Linear}, "net: expected a Module or None, got Linear"),
        ({"rule": 3}, "rule: expected a function or a sequence or None, got 3"),
        ({"values": "12"}, "values: expected a sequence, got '12'"),
        ({"values": {1: 2}}, "values: expected a sequence, got dict"),
        ({"data": [1.0]}, "data: expected a tensor or None, got list"),
        ({"flag": None}, "flag: expected True or False, got None"),
        ({"other": 3}, "other: expected a Later or None, got 3"),
    ],
)
def test_what_does_not_fit_is_named(given, message):
    with pytest.raises(TypeError) as error:
        function(**given)
    assert str(error.value).startswith(message)


def test_classes_and_further_arguments():
    with pytest.raises(TypeError, match="share: expected a number, got None"):
        Later(1, None)
    with pytest.raises(TypeError, match="unexpected keyword argument 'sizes'"):
        Later(sizes=1)
    assert list(inspect.signature(Later).parameters) == ["size", "share"]
    assert function(1, 2.0, None, None, (), None, True, None, 4, 5)[-2] == (4, 5)


# ---- shapes of tensors

SHAPES = [(), (1,), (2,), (3,), (2, 1), (2, 2), (2, 3), (3, 2), (1, 2, 3), (2, 3, 4)]
DTYPES = (torch.float32, torch.int64, torch.bool, torch.complex64)


@pytest.mark.parametrize("dims", ["", "n", "n F", "n n", "n 1", "n ...", "n *C", "*B", "*B K", "...", "N K ..."])
@pytest.mark.parametrize("kind", annotations.KINDS)
def test_a_shape_fits_where_jaxtyping_says_so(kind, dims):
    """Two arguments of a call, in all pairs of shapes."""
    theirs, ours = getattr(jaxtyping, kind)[Tensor, dims], annotations.Shape(kind, dims)
    for dtype in DTYPES:
        for first in SHAPES:
            for second in SHAPES:
                pair, sizes = [torch.zeros(shape, dtype=dtype) for shape in (first, second)], {}
                with jaxtyping.jaxtyped("context"):
                    expected = all(isinstance(tensor, theirs) for tensor in pair)
                assert all(ours.fits(tensor, sizes) for tensor in pair) == expected, (dtype, first, second)


Rows, Indices = Shaped[Tensor, "n *C"], Int[Tensor, "n"]


@checked_arguments
def compare(a: Rows, b: Rows | None = None, i: Indices | None = None):
    """Tensors with a row per sample."""
    return a, b, i


def test_tensors_of_shapes_that_broadcast_are_refused():
    assert compare(torch.ones(3, 2), torch.ones(3, 2), torch.arange(3))[0].shape == (3, 2)
    assert compare(torch.ones(3), None)[1] is None
    with pytest.raises(ValueError, match=r"^b: expected values \[n, \*C\] with n = 3, \*C = \(\), got .* \(3, 1\)$"):
        compare(torch.ones(3), torch.ones(3, 1))
    with pytest.raises(ValueError, match=r"^i: expected whole numbers \[n\] with n = 3, got torch.int64 .* \(1,\)$"):
        compare(torch.ones(3), i=torch.arange(1))
    with pytest.raises(TypeError, match=r"^a: expected a tensor, got list$"):
        compare([1.0])


# ---- the library's own


HEAD, PATH = nn.Linear(2, 3), dise.CosinePath()
PAIR = (dise.Euler(1), dise.RK4(1))
CALLS = {  # with arguments that fit
    dise.Cascade: {"candidates": PAIR, "accept": lambda h: h[:, 0] > 0},
    dise.Dynamic: {"candidates": PAIR, "selector": HEAD},
    dise.Confidence: {"head": HEAD, "threshold": 0.5},
    dise.Forecast: {"head": HEAD, "threshold": 0.1, "classes": 3, "channels": 0},
    dise.ConfidenceNetwork: {"head": HEAD, "candidates": 2, "classes": 3, "span": 1.0, "hidden": 4},
    dise.CostSelector: {"network": HEAD, "candidates": 3},
    dise.AdequacySelector: {"network": HEAD, "candidates": 3, "dial": 100.0},
    dise.PooledNetwork: {"channels": 2, "candidates": 2, "hidden": 4, "condition_channels": 0},
    dise.select.StateNetwork: {"size": 2, "candidates": 2, "hidden": 4, "depth": 1},
    dise.select.AssignedSelector: {"choice": torch.tensor([0, 1]), "candidates": 2},
    dise.RandomSelector: {"shares": [0.5, 0.5]},
    dise.ClassificationCost: {"alpha": 0.3, "M": 1e3},
    dise.select.RiskCost: {"risk": dise.select.disagreement},
    dise.TaskErrorCost: {"task_error": lambda a, b: a, "beta": 0.1, "resolution": 0.1},
    dise.select.OutputDeviation: {"tolerance": 0.1},
    dise.select.samples_needed: {"epsilon": 0.1, "delta": 0.05},
    dise.DiagonalNormal: {"loc": torch.zeros(2), "scale": torch.ones(2)},
    dise.RandomEndTime: {"width": 0.1, "generator": None},
    dise.HutchinsonDivergence: {"number": 1, "generator": None},
    dise.PathField: {"network": lambda t, y: y, "path": PATH, "time_scale": 1.0},
    dise.NeuralODE: {"f": HEAD, "integrator": dise.RK4(1), "t0": 0.0, "t1": 1.0},
    dise.Flow: {
        "f": HEAD,
        "base": dise.DiagonalNormal(torch.zeros(2), torch.ones(2)),
        "integrator": dise.RK4(1),
        "t0": 0.0,
        "t1": 1.0,
        "divergence": None,
    },
    dise.TimeGrid: {"fractions": (0.0, 1.0), "span": None},
    dise.grids.of: {"times": [0.0, 1.0]},
}
NONSENSE = [object(), "ab", {"a": 1}]


@pytest.mark.parametrize("target", CALLS, ids=lambda target: target.__name__)
def test_nonsense_names_the_argument(target):
    target(**CALLS[target])
    for name in CALLS[target]:
        for value in NONSENSE:
            with pytest.raises((TypeError, ValueError)) as error:
                target(**(CALLS[target] | {name: value}))
            assert str(error.value).startswith(f"{name}: "), (name, value, error.value)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (dise.Cascade(PAIR, lambda h: [True] * len(h)), "accept: expected a tensor of bool, got list"),
        (dise.Dynamic(PAIR, lambda h, k1: [[0.0, 1.0]] * len(h)), "selector: expected a tensor of scores, got list"),
    ],
    ids=["rule", "selector"],
)
def test_rules_and_selectors_return_tensors(policy, message):
    with pytest.raises(TypeError, match=f"^{message}"):
        dise.solve(lambda t, y: -y, torch.ones(3, 2), 0.0, 1.0, policy)


@pytest.mark.parametrize("size", [0, -1])
def test_sizes_are_at_least_one(size):
    for target, names in {
        dise.CostSelector: ["candidates"],
        dise.PooledNetwork: ["channels", "candidates", "hidden"],
        dise.select.StateNetwork: ["size", "candidates", "hidden", "depth"],
        dise.ConfidenceNetwork: ["candidates", "classes", "hidden"],
    }.items():
        for name in names:
            with pytest.raises(ValueError, match=rf"^{name}: expected a whole number of at least 1, got {size}"):
                target(**(CALLS[target] | {name: size}))


def test_a_cascades_rules_can_be_called():
    with pytest.raises(TypeError, match=r"^accept: expected rules, functions of states at t1, got int"):
        dise.Cascade(PAIR, [3])
