"""How public repositories call torchdiffeq, with `dise.torchdiffeq` in its place and beside it.

A call is data: shapes, times, methods and options as in the file named; the fields are small networks of this test.
"""

import importlib
import runpy
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
import torchdiffeq
from torch import nn
from torch.autograd import grad

import dise.torchdiffeq

Memory = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "memory.py"))["Memory"]


@dataclass
class Call:
    """One call.

    Args:
        shapes: of the state's tensors; the first one is the network's.
        times: t.
        keywords: of odeint or odeint_adjoint.
        roles: what the other tensors' slopes are: "trace" (Hutchinson's, with a minus), "energy" or "still".
        interface, dtype: the function called; the state's and the network's dtype.
        sampling: whether it is called under no_grad.
        bound: largest difference of the values, in multiples of 1 and of the value.
        gradients: whether torchdiffeq 0.2.5 can differentiate this call.
    """

    shapes: tuple[tuple[int, ...], ...]
    times: torch.Tensor
    keywords: dict
    roles: tuple[str, ...] = ()
    interface: str = "odeint"
    dtype: torch.dtype = torch.float32
    sampling: bool = False
    bound: float = 1e-4
    gradients: bool = True


@dataclass
class Site:
    """A file of a repository at a commit, and its calls."""

    repository: str
    commit: str
    file: str
    calls: list[Call] = field(default_factory=list)


def at(*times):
    return torch.tensor(times)


def line(number, start=0.0, end=1.0):
    return torch.linspace(start, end, number)


def dopri5(tolerance, **more):
    return {"rtol": tolerance, "atol": tolerance, "method": "dopri5", **more}


ADJOINT, SAMPLE = {"interface": "odeint_adjoint"}, {"sampling": True}
SWAY = line(33) - (torch.cos(torch.pi / 2 * line(33)) - 1 + line(33))
BOTH = {"step_size": 1, "max_iters": 100}
SITES = [
    Site("rtqichen/ffjord", "994864a", "lib/layers/cnf.py", [
        Call(((32, 2), (32, 1)), at(0.0, 0.5), dopri5(1e-5, options={}), ("trace",), **ADJOINT),
        Call(((32, 2), (32, 1)), at(0.5, 0.0), dopri5(1e-5), ("trace",), **SAMPLE),
    ]),
    Site("YuliaRubanova/latent_ode", "c0682d4", "lib/diffeq_solver.py", [
        Call(((3, 20, 10),), line(100, 0.0, 5.0), {"rtol": 1e-3, "atol": 1e-4, "method": "dopri5"}, bound=1e-2),
        Call(((1, 20, 40),), at(1.0, 0.99), {"rtol": 1e-3, "atol": 1e-4, "method": "euler"}),
    ]),
    Site("patrick-kidger/NeuralCDE", "7e529f5", "controldiffeq/cdeint_module.py", [
        Call(((16, 8),), at(0.0, 4.0, 9.0), {"method": "rk4", "options": {"step_size": 1.0}}, **ADJOINT),
        Call(((16, 8),), at(0.0, 0.37), {"method": "rk4"}, **ADJOINT),  # experiments/models/other.py
    ]),
    Site("patrick-kidger/torchcde", "9ff6aba", "torchcde/solver.py", [
        Call(((16, 3),), at(0.0, 2.0), {"atol": 1e-6, "rtol": 1e-4, "adjoint_atol": 1e-6, "adjoint_rtol": 1e-4},
             bound=1e-3, **ADJOINT),
        Call(((2, 3),), line(4, 0.0, 9.0).double(), {"method": "rk4", "options": {"step_size": 1.0}, "rtol": 0.1,
                                                     "atol": 0.1}),
    ]),
    Site("willisma/SiT", "947f95b", "transport/integrators.py", [
        Call(((2, 4, 8, 8),), line(50), {"method": "dopri5", "atol": [1e-6], "rtol": [1e-3]}, bound=1e-2, **SAMPLE),
    ]),
    Site("NVlabs/LSGM", "5eae2f3", "diffusion_continuous.py", [
        Call(((2, 4, 4, 4), (2, 1)), at(1e-5, 1.0),
             {"atol": 1e-5, "rtol": 1e-5, "method": "scipy_solver", "options": {"solver": "RK45"}}, ("trace",),
             **SAMPLE),
        Call(((2, 4, 4, 4),), at(1.0, 1e-5),
             {"atol": 1e-5, "rtol": 1e-5, "method": "scipy_solver", "options": {"solver": "RK45"}}, **SAMPLE),
    ]),
    Site("KrishnaswamyLab/TrajectoryNet", "810c89b", "TrajectoryNet/lib/layers/cnf.py", [
        Call(((32, 5), (32, 1), (), ()), at(0.0, 0.5),
             {"atol": [1e-5, 1e-5, 1e20, 1e20], "rtol": [1e-5, 1e-5, 1e20, 1e20], "method": "dopri5", "options": {}},
             ("trace", "energy", "energy"), gradients=False, **ADJOINT),
    ]),
    Site("stevenygd/PointFlow", "26e8c26", "models/cnf.py", [
        Call(((4, 16, 3), (4, 16, 1), (4, 8)), at(0.0, 0.5),
             {"atol": [1e-5] * 3, "rtol": [1e-5] * 3, "method": "dopri5", "options": {}}, ("trace", "still"),
             gradients=False, **ADJOINT),
        Call(((4, 16, 3), (4, 16, 1), (4, 8)), at(0.5, 0.0), dopri5(1e-5), ("trace", "still"), **SAMPLE),
    ]),
    Site("EmilienDupont/augmented-neural-odes", "88d9865", "anode/models.py", [
        Call(((32, 3),), at(0.0, 1.0), dopri5(1e-3, options={"max_num_steps": 1000}), bound=1e-2),
        Call(((32, 3),), line(10), dopri5(1e-3, options={"max_num_steps": 1000}), bound=1e-2, **ADJOINT),
    ]),
    Site("twitter-research/graph-neural-pde", "af9047e", "src/block_constant.py", [
        Call(((40, 16),), at(0.0, 3.0), {"atol": 1e-5, "rtol": 1e-7, "method": "dopri5", "options": BOTH}),
        Call(((40, 16),), at(0.0, 3.0), {"atol": 1e-4, "rtol": 1e-4, "method": "dopri5", "options": BOTH,
                                         "adjoint_method": "adaptive_heun", "adjoint_options": BOTH,
                                         "adjoint_atol": 1e-3, "adjoint_rtol": 1e-3}, bound=1e-2, **ADJOINT),
        Call(((40, 16),), at(0.0, 3.0), {"atol": 1e-4, "rtol": 1e-4, "method": "rk4", "options": BOTH,
                                         "adjoint_method": "rk4", "adjoint_options": BOTH}, **ADJOINT),
    ]),
    Site("vgsatorras/en_flows", "2fd18bf", "flows/ffjord.py", [
        Call(((8, 4, 3), (8,), (8,)), at(0.0, 1.0), dopri5(1e-4), ("trace", "energy"), bound=1e-3, **ADJOINT),
        Call(((8, 4, 3),), at(1.0, 0.0), dopri5(1e-7), **SAMPLE),
        Call(((8, 4, 3),), line(50, 1.0, 0.0), dopri5(1e-7), **SAMPLE),
    ]),
    Site("SWivid/F5-TTS", "2ae2c9b", "src/f5_tts/model/cfm.py", [
        Call(((1, 50, 16),), SWAY.bfloat16(), {"method": "euler"}, dtype=torch.bfloat16, bound=0.1,
             **SAMPLE),
        Call(((1, 50, 16),), SWAY, {"method": "midpoint"}, **SAMPLE),
    ]),
    Site("lucidrains/rectified-flow-pytorch", "26fbed9", "rectified_flow_pytorch/rectified_flow.py", [
        Call(((2, 3, 8, 8),), line(16), {"atol": 1e-5, "rtol": 1e-5, "method": "midpoint"}, **SAMPLE),
        Call(((2, 3, 8, 8),), line(16).flip(0), {"method": "heun2"}, **SAMPLE),  # ua_flow.py
    ]),
    Site("lucidrains/voicebox-pytorch", "d115a99", "voicebox_pytorch/voicebox_pytorch.py", [
        Call(((2, 40, 16),), line(3), {"atol": 1e-5, "rtol": 1e-5, "method": "midpoint"}, **SAMPLE),
    ]),
    Site("mbilos/neural-flows-experiments", "bd19f7c", "nfe/models/ode.py", [
        Call(((8, 10, 4), (8, 10, 1)), at(0.0, 1.0),
             {"method": "dopri5", "options": None, "atol": 1e-4, "rtol": 1e-3, "adjoint_options": {"norm": "seminorm"}},
             ("still",), bound=1e-2, **ADJOINT),
        Call(((8, 10, 4), (8, 10, 1)), at(0.0, 1.0),
             {"method": "rk4", "options": {"step_size": 0.05}, "adjoint_options": {"norm": "seminorm"}}, ("still",),
             **ADJOINT),
        Call(((8, 2), (8,), (8,), (8, 2), (8,), (1,), (1,)), at(0.0, 1.0), dopri5(1e-6),  # stpp/models/spatial/cnf.py
             ("still", "still", "still", "trace", "energy", "energy"), **ADJOINT),
    ]),
    Site("KrishnaswamyLab/MIOFlow", "ec4b8ba", "mioflow/core/losses.py", [
        Call(((30, 5),), line(5, 0.0, 2.0), {}),
        Call(((30, 5),), line(100, 0.0, 2.0), {}, **SAMPLE),  # mioflow.py
    ]),
    Site("facebookresearch/riemannian-fm", "a909279", "manifm/model_pl.py", [
        Call(((32, 3),), line(2), {"atol": 1e-5, "rtol": 1e-5}, **SAMPLE),
        Call(((32, 3),), line(2), {"atol": 1e-5, "rtol": 1e-5, "options": {"min_step": 1e-5}}, **SAMPLE),
        Call(((32, 4),), line(2, 1.0, 0.0), dopri5(1e-7, options={"min_step": 1e-5}), **SAMPLE),
    ]),
    Site("facebookresearch/audiocraft", "896ec7c", "audiocraft/models/flow_matching.py", [
        Call(((2, 50, 16),), at(0.0, 1 - 1e-5), {"atol": 1e-5, "rtol": 1e-5, "options": {}}, **SAMPLE),
    ]),
    Site("facebookresearch/flow_matching", "11568d3", "flow_matching/solver/ode_solver.py", [
        Call(((16, 2),), at(0.0, 1.0), {"method": "euler", "options": {"step_size": 0.05}, "atol": 1e-5, "rtol": 1e-5},
             **SAMPLE),
        Call(((16, 2),), line(10), dopri5(1e-5, options={"step_size": 0.05}), **SAMPLE),
        Call(((16, 2), (16,)), at(1.0, 0.0), {"method": "midpoint", "options": {"step_size": 0.1}, "atol": 1e-5,
                                              "rtol": 1e-5}, ("trace",), **SAMPLE),
    ]),
    Site("atong01/conditional-flow-matching", "cacd4dc", "examples/images/cifar10/compute_fid.py", [
        Call(((2, 3, 8, 8),), line(2), dopri5(1e-5), **SAMPLE),
    ]),
    Site("DiffEqML/torchdyn", "95cc74b", "test/test_sensitivity.py", [
        Call(((64, 2),), line(30), dopri5(1e-4), bound=1e-3, **ADJOINT),
        Call(((64, 2),), line(6), dopri5(1e-9), **ADJOINT),
    ]),
    Site("ZT220501/STORK", "fd991ca", "external/PNDM/runner/runner.py"),  # an import, in a comment
]  # fmt: skip
CALLS = [
    pytest.param(call, id=f"{site.repository.split('/')[1]}-{index}")
    for site in SITES
    for index, call in enumerate(site.calls)
]
every = pytest.mark.parametrize("call", CALLS)


class Field(nn.Module):
    """A network over the last dimension of the first tensor and the time; slopes of the others by their roles."""

    def __init__(self, call):
        super().__init__()
        torch.manual_seed(0)
        size = call.shapes[0][-1]
        self.call, self.calls, self.net = (
            call,
            0,
            nn.Sequential(nn.Linear(size + 1, 16), nn.Tanh(), nn.Linear(16, size)),
        )
        self.to(call.dtype)

    def forward(self, t, state):
        self.calls += 1
        if isinstance(state, torch.Tensor):
            return self.slope(t, state)
        with torch.enable_grad():  # as FFJORD and its descendants do
            z = state[0] if state[0].requires_grad else state[0].detach().requires_grad_()
            slope = self.slope(t, z)
            noise = torch.ones_like(z)  # one draw for a whole solve
            (product,) = grad(slope, z, noise, create_graph=torch.is_grad_enabled())
        slopes = [self.other(role, part, slope, product) for role, part in zip(self.call.roles, state[1:], strict=True)]
        return (slope, *slopes)

    def slope(self, t, z):
        return self.net(torch.cat([z, t.expand(*z.shape[:-1], 1)], -1)) - z

    def other(self, role, like, slope, product):
        if role == "still":
            return torch.zeros_like(like)
        value = -product.sum(-1) if role == "trace" else slope.square().mean(-1)
        if like.numel() == 1:
            return value.mean().reshape(like.shape)
        number = like.shape[0] if value.numel() > like.numel() else value.numel()
        return value.reshape(number, -1).sum(1).reshape(like.shape)


def start(call, batch=1):
    draw = torch.Generator().manual_seed(1)
    first = tuple(torch.randn(shape, generator=draw).to(call.dtype) for shape in call.shapes)
    if batch > 1:
        first = tuple(x.repeat(batch, *(1 for _ in x.shape[1:])) if (x.ndim and len(x) > 1) or x.ndim > 1 else x
                      for x in first)  # fmt: skip
    return first if len(first) > 1 else first[0]


class Run:
    """A call by one of both libraries: values, number of func's calls, warnings, and gradients if asked for."""

    def __init__(self, call, name, monkeypatch, *, backward=False):
        monkeypatch.setitem(sys.modules, "torchdiffeq", {"dise": dise.torchdiffeq, "torchdiffeq": torchdiffeq}[name])
        interface = getattr(importlib.import_module("torchdiffeq"), call.interface)
        func, y0 = Field(call), start(call)
        with warnings.catch_warnings(record=True) as caught, torch.set_grad_enabled(not call.sampling):
            warnings.simplefilter("always")
            values = interface(func, y0, call.times, **call.keywords)
            self.values = torch.cat([x.float().reshape(len(call.times), -1) for x in as_tuple(values)], 1)
            self.calls, func.calls = func.calls, 0
            if backward:
                self.gradients = grad(as_tuple(values)[0][-1].square().mean(), tuple(func.parameters()))
                self.backward_calls = func.calls
        messages = (str(warning.message) for warning in caught)
        self.warned = any("Unexpected arguments" in text or "ignores" in text for text in messages)


def as_tuple(values):
    return values if isinstance(values, tuple) else (values,)


@every
def test_it_runs_as_there(call, monkeypatch):
    ours, theirs = (Run(call, name, monkeypatch) for name in ("dise", "torchdiffeq"))
    torch.testing.assert_close(ours.values, theirs.values, rtol=call.bound, atol=call.bound)
    assert ours.calls <= 1.1 * theirs.calls
    assert ours.warned == theirs.warned


@pytest.mark.parametrize("call", [param for param in CALLS if not param.values[0].sampling])
def test_training_is_as_there(call, monkeypatch):
    ours = Run(call, "dise", monkeypatch, backward=True)
    if call.gradients:
        theirs = Run(call, "torchdiffeq", monkeypatch, backward=True)
        torch.testing.assert_close(ours.gradients, theirs.gradients, rtol=20 * call.bound, atol=2 * call.bound)
        assert ours.backward_calls <= 1.1 * theirs.backward_calls
    else:
        with pytest.raises(AssertionError, match="same length as the tuple y0"):
            Run(call, "torchdiffeq", monkeypatch, backward=True)
        direct = Run(Call(**{**vars(call), "interface": "odeint"}), "dise", monkeypatch, backward=True)
        torch.testing.assert_close(ours.gradients, direct.gradients, rtol=1e-3, atol=1e-4)


@pytest.mark.host
@every
@pytest.mark.filterwarnings("ignore:.*(Unexpected arguments|ignores|min_step)")
def test_memory_of_inference_is_at_most_torchdiffeqs(call):
    """Bytes of all tensors alive at once, with batches of so many samples that states count."""
    numbers = sum(torch.Size(shape).numel() for shape in call.shapes)
    y0, peaks = start(call, batch=max(2, 20_000 // numbers)), []
    for module in (dise.torchdiffeq, torchdiffeq):
        func = Field(call)
        with torch.no_grad(), Memory() as memory:
            _ = [x.view_as(x) for x in as_tuple(y0)]  # count the start, whether it is looked at or not
            getattr(module, call.interface)(func, y0, call.times, **call.keywords)
        peaks.append(memory.peak)
    assert peaks[0] <= 1.1 * peaks[1]


def test_there_are_22_repositories():
    assert len({site.repository for site in SITES}) == 22


def test_solvers_is_where_scripts_import_it_from(monkeypatch):
    """facebookresearch/flow_matching, examples/image/train_arg_parser.py."""
    for name in [name for name in sys.modules if name.startswith("torchdiffeq.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchdiffeq", dise.torchdiffeq)
    module = importlib.import_module("torchdiffeq._impl.odeint")
    assert module.SOLVERS is dise.torchdiffeq.SOLVERS
    for name in [name for name in sys.modules if name.startswith("torchdiffeq.")]:
        monkeypatch.delitem(sys.modules, name)
