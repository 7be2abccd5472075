"""Bad input to `solve`, `step` and `resume`: a clear error that names what is wrong, or a right answer; never a hang.

What single modules check is tested beside them (test_solve, test_dense, test_events, test_backsolve, test_integrators);
here all options of `solve` are gone through once more, in one table.
"""

import math

import pytest
import torch
from torch.testing import assert_close

from dise import RK4, Backsolve, Cascade, Dopri5, Euler, Event, SolveError, Status, resume, solve, step

OPTIONS = {"f": lambda t, y: -y, "y0": torch.ones(2, 3), "t0": 0.0, "t1": 1.0, "integrator": Dopri5()}
META = torch.ones(2, 3, device="meta")
HERE = torch.ones(()).device  # where tests make tensors
NAN = torch.tensor([[1.0, 1, 1], [1, math.nan, 1]])


def call(**change):
    return solve(**(OPTIONS | change))


def in_place(t, y):
    return y.neg_()


def raises(t, y):
    raise KeyError("mine")


ERRORS = {
    # ---- the state
    "y0 a list": ({"y0": [[1.0]]}, TypeError, "y0: expected a tensor"),
    "y0 None": ({"y0": None}, TypeError, "y0: expected a tensor"),
    "y0 a number": ({"y0": 1.0}, TypeError, "y0: expected a tensor"),
    "y0 an empty tuple": ({"y0": ()}, TypeError, "y0: expected a tensor"),
    "y0 an empty dict": ({"y0": {}}, TypeError, "y0: expected a tensor"),
    "y0 a dict of numbers": ({"y0": {"a": 1.0}}, TypeError, "y0: expected a tensor"),
    "y0 a dict without names": ({"y0": {0: torch.ones(2)}}, TypeError, "y0: expected a dict whose keys are strings"),
    "y0 int64": ({"y0": torch.ones(2, 3).long()}, TypeError,
                 "y0: expected a floating-point or complex dtype, got torch.int64"),
    "y0 bool": ({"y0": torch.ones(2, 3) > 0}, TypeError,
                "y0: expected a floating-point or complex dtype, got torch.bool"),
    "y0 without samples": ({"y0": torch.tensor(1.0)}, ValueError, r"y0: expected tensors \[B, ...\]"),
    "y0 of two dtypes": ({"y0": (torch.ones(2), torch.ones(2).double())}, TypeError,
                         "y0: expected tensors of one dtype"),
    "y0 on two devices": ({"y0": (torch.ones(2), META[:, 0])}, TypeError,
                          f"one dtype and device, got .* on {HERE} and .* on meta"),
    "y0 of two lengths": ({"y0": (torch.ones(2), torch.ones(3))}, ValueError, "same number of samples"),
    "y0 without data": ({"y0": META}, TypeError, "y0: expected tensors with data, got device meta"),
    "y0 sparse": ({"y0": torch.eye(3).to_sparse()}, TypeError,
                  "y0: expected dense tensors, got layout torch.sparse_coo"),
    "y0 with a sparse part": ({"y0": (torch.eye(3), torch.eye(3).to_sparse())}, TypeError,
                              "y0: expected dense tensors, got layout torch.sparse_coo"),
    # ---- times
    "t0 a string": ({"t0": "0"}, TypeError, "t0: expected a number or a tensor, got str"),
    "t1 None": ({"t1": None}, TypeError, "t1: expected a number or a tensor, got NoneType"),
    "t1 a bool": ({"t1": True}, TypeError, "t1: expected a number or a tensor, got bool"),
    "t1 complex": ({"t1": 1j}, TypeError, "t1: expected a number or a tensor, got complex"),
    "t0 of another length": ({"t0": torch.zeros(3)}, ValueError, r"t0: expected a number or a tensor of shape \(2,\)"),
    "t1 NaN": ({"t1": math.nan}, ValueError, "t1: expected finite times, got nan"),
    "t1 infinite": ({"t1": math.inf}, ValueError, "t1: expected finite times, got inf"),
    "t0 infinite with an event": ({"t0": -math.inf, "event": lambda t, y: y[:, 0]}, ValueError,
                                  "t0: expected finite times"),
    "t1 NaN with an event": ({"t1": math.nan, "event": lambda t, y: y[:, 0]}, ValueError, "t1: expected finite times"),
    "t1 without data": ({"t1": torch.ones(2, device="meta")}, TypeError,
                        "t1: expected times with data, got device meta"),
    # ---- the vector field
    "f None": ({"f": None}, TypeError, r"f: expected a function of \(t, y\), got NoneType"),
    "f a tensor": ({"f": torch.ones(2)}, TypeError, r"f: expected a function of \(t, y\), got Tensor"),
    "f returns None": ({"f": lambda t, y: None}, ValueError, "f: expected dy/dt of shape .* got NoneType"),
    "f returns a number": ({"f": lambda t, y: 1.0}, ValueError, "f: expected dy/dt of shape .* got float"),
    "f returns a list": ({"f": lambda t, y: [y]}, ValueError, "f: expected dy/dt of shape .* got list"),
    "f returns a tuple": ({"f": lambda t, y: (y,)}, ValueError, r"f: expected dy/dt of shape .* got \[\(2, 3\)\]"),
    "f returns another shape": ({"f": lambda t, y: y[:, :2]}, ValueError,
                                r"f: expected dy/dt of shape \(2, 3\) .* got \(2, 2\)"),
    "f returns what would broadcast": ({"f": lambda t, y: y[:1]}, ValueError,
                                       r"f: expected dy/dt of shape \(2, 3\) .* got \(1, 3\)"),
    "f returns a sum": ({"f": lambda t, y: y.sum()}, ValueError, r"f: expected dy/dt of shape \(2, 3\) .* got \(\)"),
    "f returns complex": ({"f": lambda t, y: 1j * y}, TypeError, "f: expected a real dy/dt"),
    "f returns another device": ({"f": lambda t, y: META}, TypeError,
                                 f"f: expected dy/dt on {HERE} like y, got it on meta"),
    "f forgets a key": ({"y0": {"a": torch.ones(2), "b": torch.ones(2)}, "f": lambda t, y: {"a": y["a"]}}, ValueError,
                        "f: expected dy/dt of shape"),
    "f takes one argument": ({"f": lambda y: y}, TypeError, "positional argument"),
    "f raises": ({"f": raises}, KeyError, "mine"),
    "f changes y in place": ({"f": in_place, "y0": torch.ones(2, 3)}, RuntimeError,
                             "f: changed y in place; work on a copy"),
    "f changes t in place": ({"f": lambda t, y: -y * t.mul_(2), "y0": torch.ones(2, 3)}, RuntimeError,
                             "f: changed t in place; work on a copy"),
    # ---- the integrator
    "integrator a string": ({"integrator": "dopri5"}, TypeError, "integrator: expected an integrator such as"),
    "integrator a class": ({"integrator": Dopri5}, TypeError, "integrator: expected an integrator such as"),
    "integrator None": ({"integrator": None}, TypeError, "integrator: expected an integrator such as"),
    # ---- arguments of f
    "args a tensor": ({"args": torch.ones(2)}, TypeError, r"args: expected a tuple or list .* got Tensor"),
    "args a number": ({"args": 3}, TypeError, "args: expected a tuple or list .* got int"),
    "args a string": ({"args": "ab"}, TypeError, "args: expected a tuple or list .* got str"),
    "sample_args a tensor": ({"sample_args": torch.ones(2)}, TypeError,
                             "sample_args: expected a tuple or list .* got Tensor"),
    "sample_args of another length": ({"sample_args": (torch.ones(3),)}, ValueError,
                                      r"sample_args\[0\]: expected a tensor"),
    "sample_args a number": ({"sample_args": (1.0,)}, ValueError, r"sample_args\[0\]: expected a tensor"),
    "sample_args on another device": ({"sample_args": (META,)}, TypeError,
                                      rf"sample_args\[0\]: expected a tensor on {HERE} like y0, got it on meta"),
    # ---- save points
    "save_at a string": ({"save_at": "noon"}, TypeError, "save_at: expected times"),
    "save_at a number": ({"save_at": 0.5}, ValueError, "save_at: expected shape"),
    "save_at outside": ({"save_at": [0.5, 1.5]}, ValueError, "save_at: expected times within the span"),
    "save_at NaN": ({"save_at": [math.nan]}, ValueError, "save_at: expected times within the span"),
    "save_at of another batch": ({"save_at": torch.zeros(3, 1)}, ValueError, "save_at: expected shape"),
    "save_at complex": ({"save_at": torch.tensor([1j])}, TypeError, "save_at: expected real times"),
    "save_at ragged": ({"save_at": [[0.1], [0.1, 0.2]]}, TypeError, "save_at: expected times"),
    "save_at without data": ({"save_at": META[0]}, TypeError, "save_at: expected times with data, got device meta"),
    "save_mask alone": ({"save_mask": torch.ones(2, 1) > 0}, ValueError, "save_mask: .* save_at was not given"),
    "save_mask of numbers": ({"save_at": [0.5], "save_mask": torch.ones(1)}, TypeError,
                             "save_mask: expected a tensor of bool"),
    "save_mask of another shape": ({"save_at": [0.5], "save_mask": torch.ones(2) > 0}, ValueError,
                                   "save_mask: expected the shape of save_at"),
    # ---- events
    "event a number": ({"event": 1.0}, TypeError, "event: expected a function"),
    "event returns None": ({"event": lambda t, y: None}, TypeError,
                           "event: expected a tensor of real numbers or bool, got NoneType"),
    "event returns whole numbers": ({"event": lambda t, y: y[:, 0].long()}, TypeError,
                                    "event: expected a tensor of real numbers or bool, got torch.int64"),
    "event returns the state": ({"event": lambda t, y: y}, ValueError, r"event: expected shape \(2,\)"),
    "event returns one number": ({"event": lambda t, y: y.sum()}, ValueError, r"event: expected shape \(2,\)"),
    # ---- the rest
    "accumulate a number": ({"accumulate": 1.0}, TypeError, "accumulate: expected a function"),
    "accumulate returns a number": ({"accumulate": lambda s: 1.0}, ValueError,
                                    r"accumulate: expected a tensor of shape \(2,\)"),
    "progress a number": ({"progress": 1.0}, TypeError, "progress: expected a function"),
    "gradient unknown": ({"gradient": "adjoint"}, ValueError, "gradient: expected 'direct'"),
    "gradient True": ({"gradient": True}, ValueError, "gradient: expected 'direct'"),
    "backsolve through control": ({"gradient": "backsolve", "differentiate_step_sizes": True}, ValueError,
                                  "differentiate_step_sizes: backsolve"),
    "batched a string": ({"batched": "no"}, TypeError, "batched: expected True or False, got 'no'"),
    "drop_finished None": ({"drop_finished": None}, TypeError, "drop_finished: expected True or False, got None"),
    "dense a list": ({"dense": [0.5]}, TypeError, r"dense: expected True or False, got \[0.5\]"),
    "throw a string": ({"throw": "no"}, TypeError, "throw: expected True or False, got 'no'"),
    "record a number": ({"record": 1}, TypeError, "record: expected True or False, got 1"),
    "step sizes a number": ({"differentiate_step_sizes": 0}, TypeError, "step_sizes: expected True or False, got 0"),
    "compile a string": ({"compile": "yes"}, TypeError, "compile: expected True, False, 'fast' or a mapping"),
    "an unknown option": ({"rtol": 1e-3}, TypeError, "unexpected keyword argument 'rtol'"),
    # ---- numbers that are none
    "y0 NaN": ({"y0": NAN}, SolveError, "1 of 2 samples failed; first: sample 1 at t=0 .*NON_FINITE"),
    "y0 infinite": ({"y0": NAN.nan_to_num(math.inf)}, SolveError, "sample 1 .*NON_FINITE"),
    "f NaN": ({"f": lambda t, y: y * math.nan}, SolveError, "2 of 2 samples failed; first: sample 0 .*NON_FINITE"),
    "f infinite": ({"f": lambda t, y: y / 0}, SolveError, "2 of 2 samples failed.*NON_FINITE"),
    "f NaN from t > 0.5": ({"f": lambda t, y: torch.where(t > 0.5, math.nan, -y)}, SolveError, "NON_FINITE"),
    "f explodes": ({"f": lambda t, y: y**2, "t1": 2.0}, SolveError, "2 of 2 samples failed"),
    "f explodes under fixed steps": ({"f": lambda t, y: y**9, "t1": 9.0, "integrator": RK4(9)}, SolveError,
                                     "NON_FINITE"),
    "too few steps": ({"f": lambda t, y: torch.cos(1e3 * t) + 0 * y, "integrator": Dopri5(max_steps=9)}, SolveError,
                      "MAX_STEPS"),
    "too stiff for float32": ({"f": lambda t, y: -1e12 * (y - torch.cos(t)),
                              "integrator": Dopri5(rtol=0, atol=1e-12, max_steps=99)}, SolveError,
                              "samples failed"),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_an_error_names_it(case):
    change, kind, message = ERRORS[case]
    before = torch.ones(2, 3)
    with pytest.raises(kind, match=message) as caught:
        call(**change)
    assert not isinstance(caught.value, AssertionError)
    assert torch.equal(OPTIONS["y0"], before)


# ---- one step, and going on

STEP = {"f": lambda t, y: -y, "t": 0.0, "y": torch.ones(2, 3), "dt": 0.1, "integrator": Dopri5()}
STEP_ERRORS = {
    "f None": ({"f": None}, TypeError, r"f: expected a function of \(t, y\), got NoneType"),
    "f returns another shape": ({"f": lambda t, y: y[:1]}, ValueError, "f: expected dy/dt of shape"),
    "y a list": ({"y": [1.0]}, TypeError, "y: expected a tensor"),
    "y int64": ({"y": torch.ones(2, 3).long()}, TypeError, "y: expected a floating-point or complex dtype"),
    "t None": ({"t": None}, TypeError, "t: expected a number or a tensor, got NoneType"),
    "t NaN": ({"t": math.nan}, ValueError, "t: expected finite times"),
    "dt of another length": ({"dt": torch.ones(3)}, ValueError, r"dt: expected a number or a tensor of shape \(2,\)"),
    "dt infinite": ({"dt": math.inf}, ValueError, "dt: expected finite times"),
    "integrator a string": ({"integrator": "dopri5"}, TypeError, "integrator: expected one Runge–Kutta method"),
    "integrator that chooses": ({"integrator": Cascade([RK4(1)], lambda y: y[:, 0] > 0)}, TypeError,
                                "integrator: expected one Runge–Kutta method"),
    "k1 of another shape": ({"k1": torch.ones(2, 2)}, ValueError, "k1: expected a state structured like y"),
    "k1 of other samples": ({"k1": torch.ones(3, 3)}, ValueError, "k1: expected as many samples as y has, got 3"),
    "k1 a number": ({"k1": 1.0}, TypeError, "k1: expected a tensor"),
    "memory of another length": ({"memory": torch.ones(3)}, ValueError, "memory: expected"),
    "args a tensor": ({"args": torch.ones(2)}, TypeError, "args: expected a tuple or list"),
    "sample_args of another length": ({"sample_args": (torch.ones(3),)}, ValueError, r"sample_args\[0\]: expected"),
    "batched a string": ({"batched": "no"}, TypeError, "batched: expected True or False, got 'no'"),
}  # fmt: skip


@pytest.mark.parametrize("case", STEP_ERRORS)
def test_an_error_of_one_step_names_it(case):
    change, kind, message = STEP_ERRORS[case]
    with pytest.raises(kind, match=message):
        step(**(STEP | change))


def test_one_step_that_leaves_fs_domain_is_not_accepted():
    taken = step(**(STEP | {"f": lambda t, y: y * math.nan}))
    assert taken.accept.tolist() == [False, False]
    assert taken.dt.tolist() == pytest.approx([0.02] * 2)  # and a shorter one is proposed


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"solution": torch.ones(2, 3)}, TypeError, "solution: expected what dise.solve returned, got Tensor"),
        ({"integrator": "dopri5"}, TypeError, "integrator: expected an integrator such as"),
        ({"batched": False}, ValueError, "batched: expected True, like the solution's, got False"),
        ({"t1": math.nan}, ValueError, "t1: expected finite times"),
        ({"f": None}, TypeError, r"f: expected a function of \(t, y\), got NoneType"),
    ],
)
def test_going_on_from_nothing(change, kind, message):
    options = {"solution": call(), "f": OPTIONS["f"], "t1": 2.0, "integrator": Dopri5()} | change
    with pytest.raises(kind, match=message):
        resume(**options)


def test_going_on_with_one_system():
    first = call(batched=False, integrator=Dopri5(rtol=1e-8, atol=1e-8))
    second = resume(first, OPTIONS["f"], 2.0, Dopri5(rtol=1e-8, atol=1e-8))
    assert_close(second.y, torch.full((2, 3), math.exp(-2)))
    assert second.status.shape == ()


# ---- right answers where one might fear for them


def test_a_state_without_features_or_samples():
    assert call(y0=torch.ones(2, 0)).y.shape == (2, 0)
    assert call(y0=torch.ones(0, 3)).y.shape == (0, 3)
    assert call(y0=torch.ones(0, 3), t0=torch.zeros(0), save_at=torch.zeros(0, 2)).saved.shape == (0, 2, 3)
    assert call(y0=torch.ones(0, 3), event=lambda t, y: y[:, 0]).event.shape == (0,)
    assert call(y0=torch.ones(2, 3), save_at=[]).saved.shape == (2, 0, 3)


def test_whole_numbers_of_time_and_other_dtypes():
    expected = call().y
    assert_close(call(t0=0, t1=torch.tensor(1)).y, expected)
    assert_close(call(t1=torch.ones(2, dtype=torch.float64)).y, expected)
    assert_close(call(f=lambda t, y: -y.double()).y, expected)
    assert_close(call(f=lambda t, y: torch.ones(y.shape, dtype=torch.int64)).y, torch.full((2, 3), 2.0))


def test_strided_states_are_left_alone():
    wide = torch.ones(3, 4, dtype=torch.float64)
    y0 = wide.t()[::2, 1:]
    assert not y0.is_contiguous()
    assert_close(call(y0=y0).y, torch.full((2, 2), math.exp(-1)).double(), rtol=1e-3, atol=1e-3)
    assert torch.equal(wide, torch.ones(3, 4).double())


def test_f_may_return_its_argument():
    y0 = torch.ones(2, 3, requires_grad=True)
    y = call(f=lambda t, y: y, y0=y0).y
    y.sum().backward()
    assert_close(y0.grad, y.detach())
    assert torch.equal(y0, torch.ones(2, 3))


def test_f_must_not_overwrite_what_it_returned():
    """Memory of its own that it writes into again would change what the solver still reads."""
    buffer = torch.empty(2, 3)

    def f(t, y):
        return torch.neg(y, out=buffer)

    with torch.no_grad(), pytest.raises(RuntimeError, match="f: returned memory that it returned before"):
        call(f=f, integrator=RK4(3))
    constant = torch.ones(2, 3)
    assert_close(call(f=lambda t, y: constant, integrator=RK4(3)).y, torch.full((2, 3), 2.0))


def test_no_gradients_are_no_gradients():
    y0 = torch.ones(2, 3, requires_grad=True)
    y = call(f=lambda t, y: -y.detach(), y0=y0).y
    assert torch.autograd.grad(y.sum(), y0)[0].tolist() == [[1.0] * 3] * 2  # of the identity alone
    with torch.no_grad():
        assert not call(y0=y0).y.requires_grad
    with torch.inference_mode():
        inside = call(y0=y0).y
    assert_close(call(y0=inside.clone()).y, inside * math.exp(-1), rtol=1e-3, atol=1e-3)
    with pytest.raises(RuntimeError, match="does not require grad"):
        call().y.sum().backward()


def test_a_failing_sample_is_told_and_leaves_the_others():
    solution = call(y0=NAN, throw=False)
    assert solution.status.tolist() == [Status.SUCCESS, Status.NON_FINITE]
    assert_close(solution.y[0], torch.full((3,), math.exp(-1)), rtol=1e-3, atol=1e-3)
    with pytest.raises(SolveError):
        solution.raise_for_status()


@pytest.mark.parametrize("f", [lambda t, y: y * 1e30, lambda t, y: 1e30 * torch.sin(1e30 * t) + 0 * y])
def test_wild_fields_end(f):
    """Soon, with a status."""
    solution = call(f=f, integrator=Dopri5(max_steps=200), throw=False)
    assert (solution.status != Status.RUNNING).all()
    assert (solution.n_steps <= 200).all()


def test_extreme_spans():
    assert_close(call(t0=1e6, t1=1e6 + 1).y, call().y, rtol=2e-2, atol=2e-2)
    assert torch.equal(call(t0=0.0, t1=1e-45).y, torch.ones(2, 3))
    tiny = call(y0=torch.ones(1, 1).double(), t0=1.0, t1=1.0 + 2**-52)
    assert tiny.status.tolist() == [Status.SUCCESS]
    long = call(f=lambda t, y: 0 * y, t1=1e30)
    assert torch.equal(long.y, torch.ones(2, 3))


def test_both_steps_and_names_of_options_are_values():
    with pytest.raises(AttributeError):
        Event(lambda t, y: y).direction = "up"
    with pytest.raises(AttributeError):
        Backsolve().params = ()
    with pytest.raises(AttributeError):
        Euler(1).steps = 2
