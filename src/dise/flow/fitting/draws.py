"""What a solver is fitted to: draws of a flow and what a tight solve makes of them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from dise.flow.conditions import Condition, as_conditions
from dise.flow.divergences import AugmentedField
from dise.flow.flow import Flow
from dise.integrate import Integrator, Status, solve
from dise.integrate.integrator import check_integrator
from dise.integrate.value import check_callable, check_seed

DrawConditions = Callable[[int], Condition]


@dataclass(frozen=True)
class Draws:
    """Starts of solves with their conditions, and the ends that a tight solve gives.

    Attributes:
        starts: [N, ...] noise; data for densities.
        conditions: each [N, ...].
        ends: [N, ...] data; noise for densities.
        log_prob: [N] log-density of the starts, in nats; None for samples.
    """

    starts: Tensor
    conditions: tuple[Tensor, ...]
    ends: Tensor
    log_prob: Tensor | None = None

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, rows: slice) -> "Draws":
        log_prob = None if self.log_prob is None else self.log_prob[rows]
        return Draws(self.starts[rows], tuple(part[rows] for part in self.conditions), self.ends[rows], log_prob)

    def batches(self, size: int) -> Iterator["Draws"]:
        """The draws in batches of at most this size."""
        return (self[i : i + size] for i in range(0, len(self), size))


def check_drawable(flow: object, condition: object, reference: object, seed: object) -> None:
    """Raise an error unless each draw of a flow is a solve of its own, over one span, and the others are what they say.

    Raises:
        TypeError: no flow, function, integrator or whole number.
        ValueError: the flow has batched=False, or spans per row.
    """
    check_callable("condition", condition, "a function of the number of draws", optional=True)
    check_integrator(reference, "reference", optional=True)
    check_seed(seed)
    if not isinstance(flow, Flow):
        raise TypeError(f"flow: expected a dise.Flow, got {type(flow).__name__}")
    if not flow.block.options.batched:
        raise ValueError("flow: expected one with batched=True, whose rows are solves of their own")
    for name, t in (("t0", flow.t0), ("t1", flow.t1)):
        if isinstance(t, Tensor) and t.numel() != 1:
            raise ValueError(f"flow: expected a number {name}, the same for all rows, got {list(t.shape)} times")


def known_log_prob(draws: Draws) -> Tensor:
    """The log-density of the starts, which draws for densities have."""
    if draws.log_prob is None:
        raise ValueError("draws: expected draws for densities")
    return draws.log_prob


def exact_field(flow: Flow) -> AugmentedField:
    """The field of points and log-density with the exact divergence, whatever the flow's own is."""
    return AugmentedField(flow.f, None, len(flow.base.event_shape))


@torch.no_grad()
def draw(
    flow: Flow,
    number: int,
    condition: DrawConditions | None,
    reference: Integrator,
    *,
    density: bool,
    batch: int,
    seed: int,
) -> Draws:
    """Noise, conditions and ends by the reference; for densities the way back, with the log-density.

    Raises:
        TypeError: the base's points are not float32 or float64.
        TypeError, ValueError: `condition` returned something else than described in `fit_solver`.
        SolveError: a draw could not be integrated.
    """
    noise, conditions = draw_starts(flow, number, condition, seed=seed)
    return solve_draws(flow, noise, conditions, reference, density=density, batch=batch)


@torch.no_grad()
def solve_draws(
    flow: Flow,
    noise: Tensor,
    conditions: tuple[Tensor, ...],
    reference: Integrator,
    *,
    density: bool,
    batch: int,
    throw: bool = True,
) -> Draws:
    """Ends of given noise by the reference; for densities the way back, with the log-density.

    Args:
        flow, reference, density, batch: see `fit_solver`.
        noise, conditions: of each draw.
        throw: raise an error if a draw could not be integrated; False: leave such draws out.

    Raises:
        SolveError: a draw could not be integrated.
    """
    parts = [(noise[i : i + batch], tuple(c[i : i + batch] for c in conditions)) for i in range(0, len(noise), batch)]
    solved = [_solved(flow, *part, reference, density, throw) for part in parts]
    data, log_prob, fine = (torch.cat(pieces) for pieces in zip(*solved, strict=True))
    noise, conditions = noise[fine], tuple(part[fine] for part in conditions)
    if not density:
        return Draws(noise, conditions, data[fine])
    return Draws(data[fine], conditions, noise, log_prob[fine])


@torch.no_grad()
def draw_starts(
    flow: Flow, number: int, condition: DrawConditions | None, *, seed: int
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Noise and conditions; torch's global generators are left as they were.

    Raises:
        TypeError: the base's points are not float32 or float64.
        TypeError, ValueError: `condition` returned something else than described in `fit_solver`.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        noise = flow.base.sample(torch.Size([number]))
        conditions = as_conditions(None if condition is None else condition(number), number, batched=True)
    if noise.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"flow: expected a base of float32 or float64 points, got {noise.dtype}")
    return noise, conditions


def _solved(
    flow: Flow, noise: Tensor, conditions: tuple[Tensor, ...], reference: Integrator, density: bool, throw: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Data [n, ...], their log-density [n] (0 unless asked for), and bool [n]: whether they could be computed."""
    if not density:
        solution = solve(flow.f, noise, flow.t0, flow.t1, reference, sample_args=conditions, throw=throw)
        x = cast(Tensor, solution.y)
        return x, x.new_zeros(len(x)), solution.status == Status.SUCCESS
    state = noise, noise.new_zeros(len(noise), 1)
    solution = solve(exact_field(flow), state, flow.t0, flow.t1, reference, sample_args=conditions, throw=throw)
    x, change = cast(tuple[Tensor, Tensor], solution.y)
    return x, flow.base.log_prob(noise) + change.squeeze(-1), solution.status == Status.SUCCESS
