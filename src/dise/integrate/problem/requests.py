"""Integrations as coroutines: how an integrator requests evaluations of f.

Inside the solver a state is one [n, F] tensor and an integration is a coroutine: it yields a `Request` for each
evaluation of f and receives the values from its caller. The same loop therefore serves a single integrator and a batch
whose samples have different ones: `merge` runs several integrations in lockstep and requests all their evaluations in
one call of f.
"""

from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from dise.integrate.annotations import Float, Inexact, Int


class Request(NamedTuple):
    """A request for f(t, y) of some samples."""

    rows: Int[Tensor, " n"] | None  # indices into the problem's samples; None: all of them, in order
    t: Float[Tensor, " n"]
    y: Inexact[Tensor, "n F"]


class ExactRequest(Request):
    """A request for values that are not under the solve's autocast."""


class Result(NamedTuple):
    """The end of an integration, with a row per sample; the fields are those of `Solution`.

    For a run of the end alone (`Run.end_only`) only `y` and `status` count; others may be None, or of a candidate whose
    answer was not accepted. There a `status` of None says that all samples have succeeded.
    """

    y: Inexact[Tensor, "n F"]
    t: Float[Tensor, " n"]
    nfe: Int[Tensor, " n"] | None
    n_steps: Int[Tensor, " n"] | None
    n_accepted: Int[Tensor, " n"] | None
    error: Float[Tensor, " n"] | None
    status: Int[Tensor, " n"] | None
    dt: Float[Tensor, " n"] | None
    accumulated: Float[Tensor, "n ..."] | None
    k1: Inexact[Tensor, "n F"] | None = None  # f(t, y); NaN where it is unknown, None if it is unknown for all
    choice: Int[Tensor, " n"] | None = None

    @classmethod
    def of_end(cls, y: Tensor, t: Tensor, status: Tensor | None = None) -> "Result":
        """The result of a run of the end alone."""
        return cls(y, t, None, None, None, None, status, None, None)

    @property
    def outcome(self) -> Int[Tensor, " n"]:
        """The status, with a number for each sample where None says that all have succeeded."""
        return torch.zeros_like(self.t, dtype=torch.int64) if self.status is None else self.status  # SUCCESS is 0

    @property
    def slope(self) -> Inexact[Tensor, "n F"]:
        """k1, or a NaN expanded without memory."""
        return self.y.new_full((), torch.nan).expand_as(self.y) if self.k1 is None else self.k1


Integration = Generator[Request, Tensor, Result]
T = TypeVar("T")


def with_slopes(*results: Result) -> tuple[Result, ...]:
    """The results, with k1 in all of them or in none."""
    if all(result.k1 is None for result in results):
        return results
    return tuple(result._replace(k1=result.slope.contiguous()) for result in results)


def with_outcomes(*results: Result) -> tuple[Result, ...]:
    """The ends alone, with a status in all of them or in none."""
    known = any(result.status is not None for result in results)
    return tuple(Result.of_end(r.y, r.t, r.outcome if known else None) for r in results)


def of_rows(rows: Tensor, integration: Integration) -> Integration:
    """An integration of some samples, whose requests name these rows [n] of the samples it was taken from."""
    return _changed(integration, lambda r: r._replace(rows=rows if r.rows is None else rows[r.rows]))


def exactly(integration: Integration) -> Integration:
    """An integration whose requests are `ExactRequest`s."""
    return _changed(integration, lambda request: ExactRequest(*request))


def _changed(integration: Integration, change: Callable[[Request], Request]) -> Integration:
    """An integration with each of its requests changed."""
    value = None
    while True:
        try:
            request = next(integration) if value is None else integration.send(value)
        except StopIteration as stop:
            return cast(Result, stop.value)
        value = yield change(request)


def merge(parts: Sequence[tuple[Tensor, Integration]]) -> Generator[Request, Tensor, list[Result]]:
    """Run integrations of disjoint samples in lockstep: their n-th evaluations of f are one call.

    The number of batch calls is therefore the maximum over the parts, not the sum; requests for exact values are calls
    of their own.

    Args:
        parts: pairs of rows [n_i] and their integration.

    Returns:
        the results, in the order of the parts.
    """
    results: list[Result | None] = [None] * len(parts)
    answers: dict[int, Tensor | None] = dict.fromkeys(range(len(parts)))
    while True:
        requests: dict[int, Request] = {}
        for i, answer in answers.items():
            rows, integration = parts[i]
            try:
                request = next(integration) if answer is None else integration.send(answer)
            except StopIteration as stop:
                results[i] = stop.value
            else:
                requests[i] = request._replace(rows=rows if request.rows is None else rows[request.rows])
        if not requests:
            return [result for result in results if result is not None]
        answers = {}
        for same in _by_kind(requests):
            ((i, request), *others) = same.items()
            if not others:
                answers[i] = yield request
            else:
                values = yield type(request)(*(torch.cat(column) for column in zip(*same.values(), strict=True)))
                answers.update(zip(same, values.split([len(r.y) for r in same.values()]), strict=True))


def _by_kind(requests: dict[int, Request]) -> list[dict[int, Request]]:
    """The requests that one call of f can answer, together."""
    exact = {i for i, request in requests.items() if isinstance(request, ExactRequest)}
    if not exact or len(exact) == len(requests):
        return [requests]
    return [{i: request for i, request in requests.items() if (i in exact) is kind} for kind in (False, True)]


def drive(coroutine: Generator[Request, Tensor, T], answer: Callable[[Request], Tensor]) -> T:
    """Run a coroutine to its end with the answers to its requests; return its result."""
    value = None
    while True:
        try:
            request = next(coroutine) if value is None else coroutine.send(value)
        except StopIteration as stop:
            return cast(T, stop.value)
        value = None  # the last value is not held while f is called
        value = answer(request)
