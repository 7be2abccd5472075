"""What the benchmarks of speed share: one batch of initial value problems, solved by this library and by its peers.

A solve ends at t1, or by an event at t1 on the way to 2·t1, which torchdiffeq looks for in the whole batch and the
others in each sample, or has 50 save points, or keeps a record of its steps, which dise alone does (the others just
solve).

All solve by Dormand and Prince's 5(4) with an elementary (I) controller of the same constants, the same tolerance and
a first step chosen by the heuristic of Hairer, Nørsett and Wanner, and return the states at t1. Gradients are by direct
backpropagation with step sizes as constants. A peer that is not installed, or does not do it, is left out.
"""

import argparse
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import floor
import torch
from torch import Tensor, nn
from torchdiffeq import odeint, odeint_event

import dise

# one thread, which jax must be told before it starts
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

MAX_STEPS = 4096  # diffrax wants to know how many at most; its checkpoints' number depends on it

FLOOR = "C++ by hand"
F_ALONE = "f alone"
KINDS = ("end", "save points", "event", "record")
SAVE_POINTS = 50

Solve = Callable[[Tensor], Tensor]  # y0 [B, F] → y(t1) [B, F], or at the save points [B, T, F]


def arguments(description: str | None, *, repeats: int) -> argparse.ArgumentParser:
    """What each of these benchmarks can be told."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--t1", type=float, default=10.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    return parser


class VanDerPol(nn.Module):
    """x' = v, v' = μ(1 − x²)v − x of states (x, v) [n, 2]."""

    mu = 2.0

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        x, v = y[:, 0], y[:, 1]
        return torch.stack([v, self.mu * (1 - x * x) * v - x], dim=1)

    def for_jax(self) -> Callable[[Any, Any, Any], Any]:
        """The same for one sample's state [2]."""
        import jax.numpy as jnp

        return lambda t, y, weights: jnp.stack([y[1], self.mu * (1 - y[0] * y[0]) * y[1] - y[0]])


class TanhNetwork(nn.Module):
    """y' = W₂ tanh(W₁ y + b₁) + b₂ with 64 hidden units.

    W₁ is half of what nn.Linear draws; W₂ = J W₁ᵀ with a quarter turn J and b₂ = 0, so that states go round on the
    level lines of Σ log cosh(W₁ y + b₁): neither to rest nor to where all units are saturated.
    """

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        first, last = nn.Linear(2, 64), nn.Linear(64, 2)
        self.net = nn.Sequential(first, nn.Tanh(), last)
        with torch.no_grad():
            first.weight.mul_(0.5)
            last.weight.copy_(torch.tensor([[0.0, 1.0], [-1.0, 0.0]]) @ first.weight.T)
            last.bias.zero_()

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(y)

    def for_jax(self) -> Callable[[Any, Any, Any], Any]:
        """The same for one sample's state [2]; its weights are an argument, so that they get gradients."""
        import jax.numpy as jnp

        return lambda t, y, w: w[2] @ jnp.tanh(w[0] @ y + w[1]) + w[3]


@dataclass(frozen=True)
class Task:
    """A batch to be solved from 0 to t1."""

    f: nn.Module
    y0: Tensor  # [B, F]
    t1: float
    tolerance: float
    kind: str = "end"  # one of KINDS

    @property
    def times(self) -> Tensor:
        """The save points, or the span."""
        return torch.linspace(0.0, self.t1, SAVE_POINTS if self.kind == "save points" else 2)


@dataclass(frozen=True)
class Way:
    """One library's solve of a task.

    Attributes:
        forward: y0 → states at t1, without gradients.
        backward: forward, the sum of the states' squares, and its gradients in y0 and f's parameters; None: none.
        rounds: of attempted steps that a solve's loop makes; each steps the whole batch (dise: who still runs).
        rows: of f that a solve evaluates, summed over its calls; None where it cannot be counted.
    """

    forward: Solve
    backward: Solve | None
    rounds: int
    rows: int | None


class Counter(nn.Module):
    """A vector field that counts the calls and rows that it is asked for."""

    def __init__(self, f: nn.Module) -> None:
        super().__init__()
        self.f, self.calls, self.rows = f, 0, 0

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        self.calls, self.rows = self.calls + 1, self.rows + len(y)
        return self.f(t, y)

    @property
    def rounds(self) -> int:
        """Two evaluations choose the first step; a step of DOPRI is six."""
        return (self.calls - 2) // 6


def ways(task: Task) -> dict[str, Way]:
    """Every way that works here, and f alone."""
    made = {
        F_ALONE: by_f_alone(task),
        "dise": by_dise(task),
        "dise, compiled": by_dise(task, compile=True),
        "dise, compiled fast": by_dise(task, compile="fast"),
    }
    if task.kind == "end" and installed("torchode"):
        made |= {"torchode": by_torchode(task), "torchode, compiled": by_torchode(task, compile=True)}
    made["torchdiffeq"] = by_torchdiffeq(task)
    if installed("diffrax"):
        made["diffrax, jit"] = by_diffrax(task)
    if task.kind == "end" and floor.library() is not None:
        made[FLOOR] = by_hand(task)
    return made


def installed(name: str) -> bool:
    """Whether a peer is there; says so if not."""
    found = importlib.util.find_spec(name) is not None
    if not found:
        print(f"{name} is not installed: left out")
    return found


def by_dise(task: Task, *, compile: Literal[False, True, "fast"] = False) -> Way:
    """This library; a round counts once however many samples it steps."""

    def solve(y0: Tensor) -> Tensor:
        return _states(_solution(task, task.f, y0, compile=compile))

    counter = Counter(task.f)
    with torch.no_grad():
        _solution(task, counter, task.y0)  # also checks that f does not mix samples
        counter.calls = counter.rows = 0
        solution = _solution(task, counter, task.y0)
    if counter.rows != int(solution.nfe.sum()):
        raise RuntimeError(f"f was evaluated on {counter.rows} rows, but the samples need {int(solution.nfe.sum())}")
    # a compiled solve takes as many rounds; in some of them it also steps samples that are done
    return _way(solve, task.f, counter.rounds, None if compile else counter.rows)


def by_f_alone(task: Task) -> Way:
    """The calls of f in dise's solve, on the same arguments, without anything else; returns the states of that solve.

    What a step of any eager solver of these rows takes at least.
    """
    counter, calls = Counter(task.f), list[tuple[Tensor, Tensor]]()
    with torch.no_grad():
        _solution(task, counter, task.y0)  # also checks that f does not mix samples
        counter.calls = counter.rows = 0
        counter.register_forward_pre_hook(lambda f, call: calls.append((call[0].clone(), call[1].clone())))
        states = _states(_solution(task, counter, task.y0))

    @torch.no_grad()
    def forward(y0: Tensor) -> Tensor:
        for t, y in calls:
            task.f(t, y)
        return states

    return Way(forward, None, counter.rounds, counter.rows)


def _solution(task: Task, f: nn.Module, y0: Tensor, *, compile: Literal[False, True, "fast"] = False) -> dise.Solution:
    """This library's solution of the task."""
    integrator, options, t1 = dise.Dopri5(rtol=task.tolerance, atol=task.tolerance), dict[str, Any](), task.t1
    if task.kind == "save points":
        options["save_at"] = task.times
    elif task.kind == "record":
        options["record"] = True
    elif task.kind == "event":
        options["event"], t1 = lambda t, y: t[:, 0] - task.t1, 2 * task.t1
    return dise.solve(f, y0, 0.0, t1, integrator, compile=compile, **options)


def _states(solution: dise.Solution) -> Tensor:
    """Those at the end, or at the save points."""
    return solution.y if solution.saved is None else solution.saved


def by_torchdiffeq(task: Task) -> Way:
    """torchdiffeq: one step size for the whole batch."""
    options = {"rtol": task.tolerance, "atol": task.tolerance, "method": "dopri5"}

    def solve(f: nn.Module, y0: Tensor) -> Tensor:
        if task.kind == "event":
            start, end = task.times
            return odeint_event(f, y0, start, event_fn=lambda t, y: (t - end)[None], **options)[1][-1]
        states = odeint(f, y0, task.times, **options)
        return states.transpose(0, 1) if task.kind == "save points" else states[1]

    counter = Counter(task.f)
    with torch.no_grad():
        solve(counter, task.y0)
    return _way(lambda y0: solve(task.f, y0), task.f, counter.rounds, counter.rows)


def by_torchode(task: Task, *, compile: bool = False) -> Way:
    """torchode: a step size a sample, all rows evaluated until the last is done.

    Its README compiles by torch.jit.script, which fails an assertion inside of torch 2.13, or torch.compile(solver),
    which compiles nothing; what works is torch.compile(solver.solve).
    """

    def made(f: nn.Module) -> Any:
        import torchode

        term = torchode.ODETerm(f, with_stats=False)
        controller = torchode.IntegralController(task.tolerance, task.tolerance, term=term)
        return torchode.AutoDiffAdjoint(torchode.Dopri5(term), controller, backprop_through_step_size_control=False)

    def solver(f: nn.Module, *, compile: bool = False) -> Solve:
        import torchode

        run = torch.compile(made(f).solve) if compile else made(f).solve
        start, end = (torch.full((len(task.y0),), t) for t in (0.0, task.t1))
        return lambda y0: run(torchode.InitialValueProblem(y0=y0, t_start=start, t_end=end)).ys[:, 0]

    counter = Counter(task.f)
    with torch.no_grad():
        solver(counter)(task.y0)
    return _way(solver(task.f, compile=compile), task.f, counter.rounds, counter.rows)


class JittedDiffrax:
    """diffrax: vmapped over samples and jitted, so all rows step until the last is done; compiles when first called."""

    def __init__(self, task: Task) -> None:
        import diffrax
        import jax
        import jax.numpy as jnp

        weights = tuple(jnp.asarray(p.detach().numpy()) for p in task.f.parameters())
        term = diffrax.ODETerm(task.f.for_jax())  # type: ignore[operator]
        controller = diffrax.PIDController(rtol=task.tolerance, atol=task.tolerance)  # pcoeff=dcoeff=0: an I controller
        options, t1 = dict[str, Any](), task.t1
        if task.kind == "save points":
            options["saveat"] = diffrax.SaveAt(ts=jnp.asarray(task.times.numpy()))
        elif task.kind == "event":
            import optimistix

            root = optimistix.Newton(task.tolerance, task.tolerance)
            options["event"], t1 = diffrax.Event(lambda t, y, args, **more: t - task.t1, root), 2 * task.t1

        def one(y0: Any, weights: Any) -> tuple[Any, Any]:
            solution = diffrax.diffeqsolve(
                term, diffrax.Dopri5(), 0.0, t1, None, y0, weights,
                stepsize_controller=controller, max_steps=MAX_STEPS, **options,
            )  # fmt: skip
            return solution.ys if task.kind == "save points" else solution.ys[0], solution.stats["num_steps"]

        many = jax.vmap(one, in_axes=(0, None))
        self._start, self._weights = jnp.asarray(task.y0.numpy()), weights
        self._solve = jax.jit(many)
        self._loss = jax.jit(jax.grad(lambda y0, w: (many(y0, w)[0] ** 2).sum(), argnums=(0, 1)))

    def forward(self, y0: Tensor) -> Tensor:
        """As in `Way`."""
        return self._read(self._solve(self._start, self._weights)[0])

    def backward(self, y0: Tensor) -> Tensor:
        """As in `Way`."""
        return self._read(self._loss(self._start, self._weights)[0])

    def rounds(self) -> int:
        """As in `Way`."""
        return int(self._solve(self._start, self._weights)[1].max())

    @staticmethod
    def _read(x: Any) -> Tensor:
        import jax

        return torch.from_numpy(jax.device_get(x).copy())


def by_diffrax(task: Task) -> Way:
    """diffrax, by `JittedDiffrax`."""
    jitted = JittedDiffrax(task)
    return Way(jitted.forward, jitted.backward, jitted.rounds(), None)


def by_hand(task: Task) -> Way:
    """A loop in C++, without gradients."""

    def forward(y0: Tensor) -> Tensor:
        return floor.solve(task.f, y0, task.t1, task.tolerance)[0]

    return Way(forward, None, floor.solve(task.f, task.y0, task.t1, task.tolerance)[1], None)


def _way(solve: Solve, f: nn.Module, rounds: int, rows: int | None) -> Way:
    def forward(y0: Tensor) -> Tensor:
        with torch.no_grad():
            return solve(y0)

    def backward(y0: Tensor) -> Tensor:
        with torch.enable_grad():
            start = y0.clone().requires_grad_()
            loss = solve(start).square().sum()
            return torch.autograd.grad(loss, (start, *f.parameters()))[0]

    return Way(forward, backward, rounds, rows)
