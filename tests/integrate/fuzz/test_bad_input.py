"""Random arguments, most of them wrong: an answer, or an error that names the argument."""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dise import RK4, Backsolve, Dopri5, Event, SolveError, StepDoubling, resume, solve, step
from dise.torchdiffeq import odeint, odeint_adjoint, odeint_dense, odeint_event

pytestmark = pytest.mark.fuzz


class Odd:
    """Not a number, not a tensor, not callable."""

    def __repr__(self):
        return "Odd()"


# values by the kind of thing they are; any argument may get any of them
VALUES = [
    None,
    True,
    0,
    1,
    -1,
    2,
    0.5,
    -1.0,
    math.nan,
    math.inf,
    -math.inf,
    1e308,
    1e-320,
    10**400,
    1j,
    "backsolve",
    "span",
    "",
    b"x",
    (),
    [],
    {},
    (1.0,),
    [0.5],
    [math.nan],
    ["a"],
    {"a": 1.0},
    {1: torch.ones(3, 2)},
    Odd(),
    Odd,
    range(3),
    solve,
    np.ones((3, 2)),
    np.float32(0.5),
    np.array([0.1, 0.9]),
    RK4(2),
    Dopri5,
    Dopri5(max_steps=2),
    StepDoubling(RK4(1)),
    lambda t, y: y,
    lambda *a: None,
    lambda *a: 1.0,
    lambda t, y: y[:1],
    lambda t, y: y * math.nan,
    lambda t, y: (y, y),
    lambda t, y: y.to(torch.complex64),
    lambda t, y: y.long(),
    lambda t, y: y.to("meta"),
    lambda s: s.y,
    Backsolve(),
    lambda s: s.dt,
    lambda t, y: y[..., 0],
    lambda t, y: y[..., 0] > 0,
    Event(lambda t, y: t.flatten() - 0.4),
]
TENSORS = {
    "number": lambda: torch.tensor(0.5),
    "whole": lambda: torch.tensor(1),
    "bool": lambda: torch.tensor(True),
    "B": lambda: torch.tensor([0.5, 1.0, -1.0]),
    "2": lambda: torch.tensor([0.1, 0.4]),
    "empty": lambda: torch.ones(0),
    "B2": lambda: torch.ones(3, 2),
    "B0": lambda: torch.ones(3, 0),
    "02": lambda: torch.ones(0, 2),
    "long": lambda: torch.ones(3, 2, dtype=torch.long),
    "complex": lambda: torch.ones(3, 2, dtype=torch.complex64),
    "float8": lambda: torch.ones(3, 2).to(torch.float8_e4m3fn),
    "half": lambda: torch.ones(3, 2).half(),
    "meta": lambda: torch.ones(3, 2, device="meta"),
    "meta B": lambda: torch.ones(3, device="meta"),
    "nan": lambda: torch.full((3,), math.nan),
    "inf": lambda: torch.full((3,), math.inf),
    "mask": lambda: torch.ones(2) > 0,
    "mask B2": lambda: torch.ones(3, 2) > 0,
    "sparse": lambda: torch.eye(3).to_sparse(),
    "3d": lambda: torch.ones(3, 2, 2),
    "pair": lambda: (torch.ones(3, 2), torch.ones(3)),
    "unlike": lambda: (torch.ones(3), torch.ones(2)),
    "dtypes": lambda: (torch.ones(3), torch.ones(3).double()),
    "named": lambda: {"a": torch.ones(3), "b": torch.ones(3, 2)},
    "list": lambda: [torch.ones(3, 2)],
    "deep": lambda: ((torch.ones(3),), torch.ones(3)),
    "far": lambda: torch.tensor(1e30),
    "parameter": lambda: torch.nn.Parameter(torch.ones(3, 2)),
    "close": lambda: torch.tensor(1e-30),
}
VALUES += list(TENSORS)


def made(value):
    return TENSORS[value]() if isinstance(value, str) and value in TENSORS else value


def _done():
    return solve(lambda t, y: -y, torch.ones(3, 2), 0.0, 0.5, Dopri5())


def _with_options(function, **fixed):
    """The function; arguments "options.x" are items of its options, and a method's name is likely."""

    def call(f, y0, t0, t1, integrator, **given):
        options = {name[8:]: given.pop(name) for name in list(given) if name.startswith("options.")}
        arguments = {"func": f, "y0": y0, "options": {"max_num_steps": 50, **options}, **fixed, **given}
        return function(arguments.pop("func"), arguments.pop("y0"), **arguments)

    return call


METHODS = ("dopri5", "rk4", "implicit_adams", "scipy_solver", "bosh3")
OPTIONS = (
    *("options.first_step", "options.min_step", "options.max_step", "options.safety", "options.ifactor"),
    *("options.dfactor", "options.max_num_steps", "options.step_t", "options.jump_t", "options.norm", "options.dtype"),
    *("options.step_size", "options.grid_constructor", "options.interp", "options.perturb", "options.max_order"),
    *("options.max_iters", "options.solver", "options.other"),
)
ODEINT = ("func", "y0", "t", "rtol", "atol", "method", "options", "event_fn", *OPTIONS)
ADJOINT = ("adjoint_rtol", "adjoint_atol", "adjoint_method", "adjoint_options", "adjoint_params")

CALLS = {
    "odeint": (_with_options(odeint, t=torch.tensor([0.0, 0.5, 1.0])), ODEINT),
    "odeint_adjoint": (
        _with_options(odeint_adjoint, t=torch.tensor([0.0, 0.5, 1.0]), adjoint_params=()),
        (*ODEINT, *ADJOINT),
    ),
    "odeint_event": (
        _with_options(odeint_event, t0=torch.tensor(0.0), event_fn=lambda t, y: t - 0.4),
        ("func", "y0", "t0", "event_fn", "reverse_time", *OPTIONS),
    ),
    "odeint_dense": (
        _with_options(odeint_dense, t0=0.0, t1=1.0),
        ("func", "y0", "t0", "t1", "rtol", "atol", "method", "options", *OPTIONS),
    ),
    "solve": (
        lambda f, y0, t0, t1, integrator, **o: solve(f, y0, t0, t1, integrator, **o),
        (
            "f",
            "y0",
            "t0",
            "t1",
            "integrator",
            "args",
            "sample_args",
            "save_at",
            "save_mask",
            "jump_at",
            "jump_mask",
            "step_at",
            "step_mask",
            "save",
            "save_every",
            "dense",
            "event",
            "batched",
            "drop_finished",
            "accumulate",
            "differentiate_step_sizes",
            "gradient",
            "record",
            "progress",
            "throw",
        ),
    ),
    "step": (
        lambda f, y0, t0, t1, integrator, **o: step(f, t0, y0, t1, integrator, **o),
        ("f", "y0", "t0", "t1", "integrator", "k1", "memory", "args", "sample_args", "batched"),
    ),
    "resume": (
        lambda f, y0, t0, t1, integrator, solution=_done, **o: resume(
            solution() if solution is _done else solution, f, t1, integrator, **o
        ),
        ("solution", "f", "t1", "integrator", "save_at", "event", "batched", "gradient", "sample_args"),
    ),
    "integrator": (
        lambda f, y0, t0, t1, integrator, **o: solve(f, y0, t0, t1, Dopri5(**o)),
        ("rtol", "atol", "first_step", "max_steps", "dt_min", "dt_max", "accept_at_dt_min", "controller", "norm"),
    ),
}
OTHER_NAMES = ("func", "t", "y", "dt", "direction", "params", "state", "selector", "accept", "norm", "tableau", "dtype")
NAMES = {*OTHER_NAMES, *(name for _, names in CALLS.values() for name in names)}


def names_an_argument(error):
    start = re.match(r"([a-z_0-9]+)[:,.\[]", str(error))
    return start is not None and start[1] in NAMES


@pytest.mark.filterwarnings("ignore:options.*ignores")
@pytest.mark.parametrize("odeint_like", [False, True])
@given(data=st.data())
def test_an_answer_or_an_error_that_names_the_argument(odeint_like, data):
    name = data.draw(st.sampled_from([name for name in CALLS if name.startswith("odeint") == odeint_like]))
    call, arguments = CALLS[name]
    given_values = {
        "f": lambda t, y, *more: -y,
        "y0": torch.ones(3, 2),
        "t0": 0.0,
        "t1": 1.0,
        "integrator": Dopri5(max_steps=50),
    }
    for argument in data.draw(
        st.lists(st.sampled_from(arguments), min_size=1, max_size=2, unique=True), label="arguments"
    ):
        if argument == "method" and data.draw(st.booleans(), label="known"):
            given_values[argument] = data.draw(st.sampled_from(METHODS), label=argument)
            continue
        given_values[argument] = made(VALUES[data.draw(st.integers(0, len(VALUES) - 1), label=argument)])
    callables = {name for name, value in given_values.items() if callable(value)} - {"integrator"}
    try:
        call(**given_values)
    except SolveError:
        return
    except Exception as error:
        fault = error
    else:
        return
    notes = "\n".join(getattr(fault, "__notes__", []))
    clear = isinstance(fault, TypeError | ValueError) and names_an_argument(fault)
    # errors of the caller's own functions are theirs; a note says how f and event were called
    own = callables and ("was called with t of shape" in notes or not callables <= {"f"})
    assert clear or own or str(fault).startswith("f: "), f"{given_values}: {fault!r}"
