"""The values at the end of every n-th accepted step, kept when the step is taken."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dise.integrate.output.functions import FunctionCaller, Values, rebuilt
from dise.integrate.output.padding import PaddedRows
from dise.integrate.problem.hooks import StepRecord
from dise.integrate.problem.problem import Problem
from dise.integrate.problem.state import leaves


class SavedSteps:
    """Observer that keeps the values at the end of every n-th accepted step.

    Args:
        every: n.
        problem: the whole batch.
        caller: calls `function`.
        function: of (t, y, *args, *sample_args) → what to save; None: the states.
    """

    def __init__(
        self, every: int, problem: Problem, caller: FunctionCaller, function: Callable[..., Values] | None
    ) -> None:
        self._every, self._problem, self._caller, self._function = every, problem, caller, function
        self._accepted = torch.zeros_like(problem.t0, dtype=torch.int64)  # [B] since a sample's last start
        self._starts = torch.zeros_like(self._accepted)  # [B] how often a sample started over
        with torch.no_grad():  # called once for the structure of its values, so that errors come at once
            samples = torch.arange(len(problem), device=problem.t0.device)
            self._structure = self._values(samples, problem.t0, problem.y0)
        none = samples[:0]
        self._columns: list[tuple[Tensor, ...]] = [(none, none, problem.t0[:0])]  # sample, starts by then, time
        self._parts = [tuple(part[:0] for part in leaves(self._structure))]

    def see(self, record: StepRecord) -> None:
        """Keep the values of the samples whose accepted step is an n-th one."""
        accepted = self._accepted[record.sample] + record.accept
        self._accepted = self._accepted.index_put((record.sample,), accepted)
        rows = (record.accept & (accepted % self._every == 0)).nonzero().flatten()
        if len(rows):
            sample, t = record.sample[rows], record.t_next[rows]
            self._columns.append((sample, self._starts[sample], t))
            self._parts.append(leaves(self._values(sample, t, record.step.y_next[rows])))

    def start_over(self, sample: Tensor) -> None:
        """Discard the values of these samples, which another integrator solves from the start."""
        self._accepted = self._accepted.index_fill(0, sample, 0)
        self._starts = self._starts.index_add(0, sample, torch.ones_like(sample))

    def finish(self) -> tuple[Tensor, Any]:
        """Times [B, S], padded with NaN, and values [B, S, ...]; states in the user's structure."""
        sample, starts, t = (torch.cat(column) for column in zip(*self._columns, strict=True))
        kept = (starts == self._starts[sample]).nonzero().flatten()
        kept = kept[sample[kept].argsort(stable=True)]
        rows, layout = PaddedRows.of(sample[kept], len(self._problem)), self._caller.layout
        parts = [rows(torch.cat(part)[kept]) for part in zip(*self._parts, strict=True)]
        times = rows(t[kept])
        if self._function is None:
            return (times if layout.batched else times[0]), layout.unpack_saved(parts[0])
        if not layout.batched:
            times, parts = times[0], [part[0] for part in parts]
        return times, rebuilt(self._structure, parts)

    def _values(self, sample: Tensor, t: Tensor, y: Tensor) -> Values:
        return y if self._function is None else self._caller.values("save", self._function, sample, t, y)
