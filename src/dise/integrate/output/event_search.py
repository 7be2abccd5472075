"""The search for events within steps: the signs at a few points of each step, then the exact place of each crossing.

Both look at the dense output, so neither needs an evaluation of f. A crossing is located to rounding by dividing its
interval again and again into equal parts, all of whose ends are evaluated in one call of the event's function: this
finds the first crossing of several, and needs no smooth function.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from dise.integrate.output.brackets import Bracket, refined
from dise.integrate.output.events import AnyEvent, Event, SteadyState
from dise.integrate.output.functions import FunctionCaller
from dise.integrate.output.interpolation import PiecewisePolynomial, slopes_within, states_within
from dise.integrate.problem.hooks import EventMemory, EventSteps, Interruption, SearchedSteps, StepEvents, StepRecord
from dise.integrate.problem.problem import Problem
from dise.integrate.problem.state import same_structure, shapes
from dise.integrate.tracing import known_all, known_min

NEVER = torch.iinfo(torch.int64).max  # happens no event so often


class EventSearch:
    """The events of one solve; see `EventRule`.

    Args:
        events: E events by name.
        caller: calls their functions.
        problem: the whole batch.
    """

    def __init__(self, events: dict[str, AnyEvent], caller: FunctionCaller, problem: Problem) -> None:
        self.names, self._events = tuple(events), tuple(events.values())
        self._caller, self._sloped = caller, any(isinstance(event, SteadyState) for event in self._events)
        device, t0, y0 = problem.t0.device, problem.t0[None], problem.y0[None]
        last = [event.last or NEVER for event in self._events]
        self._last = torch.tensor(last, device=device)  # [E] the number of the event that stops a sample
        self._changes = torch.tensor([_changes(event) for event in self._events], device=device)  # [E] bool
        samples = torch.arange(len(problem), device=device)
        with torch.no_grad():
            values, is_bool = self._values(samples, t0, y0, torch.full_like(y0, torch.inf))
        self._is_bool = torch.tensor(is_bool, device=device)  # [E]
        directions = [_directions(event, yes) for event, yes in zip(self._events, is_bool, strict=True)]
        self._both = all(rising and falling for rising, falling in directions)
        self._rising, self._falling = torch.tensor(directions, device=device).unbind(1)  # [E] bool each
        self._start = _signs(values[0])  # [B, E]

    @property
    def stops(self) -> bool:
        """Whether an event may stop a sample."""
        return any(event.last for event in self._events)

    @property
    def changes(self) -> bool:
        """Whether an event may change a sample's state."""
        return any(_changes(event) for event in self._events)

    def inside(self, y: Tensor) -> tuple[float, ...]:
        """The places within a step at which signs are compared; see `_inside`."""
        return _inside(torch.finfo(y.dtype).eps)

    def start(self, sample: Tensor) -> EventMemory:
        """The memory of samples [N] before their first step."""
        side = self._start[sample]
        return EventMemory(side, torch.zeros_like(side, dtype=torch.int64))

    def look(self, memory: EventMemory, place: Tensor, record: StepRecord) -> SearchedSteps:
        """The memory after a step, the events within it, and which steps they interrupt; see `EventRule`."""
        rounds, n = record.rounds, len(place) // record.rounds
        place = place if rounds == 1 else place[:n]
        side = memory.side if n == len(memory.side) else memory.side.index_select(0, place)
        thetas, values = self._scan(record)
        values = values.unflatten(1, (rounds, n))  # [M, rounds, n, E]
        lowest = known_min(values * side)
        if lowest > 0:
            return SearchedSteps(memory)
        unknown = math.isnan(lowest)  # NaN is among them, or whether it is cannot be told without a device sync
        signs, accept = _signs(values) if unknown else values.sign(), record.accept.view(rounds, n, 1)
        sides, last_side = _sides(side, signs[-1], accept)
        before = torch.cat([sides[None], signs[:-1]])
        undefined = None
        if unknown:  # the dense output may overflow, or leave a function's domain, where the step does not
            before = _last_known(before)
            undefined = (signs[-1].isnan() & accept).any(2)  # [rounds, n]
        crossed = self._crossed(before, signs) & accept
        side = last_side if n == len(memory.side) else memory.side.index_put((place,), last_side)
        places = _places(crossed)
        if len(places[0]) == 0:
            return SearchedSteps(memory._replace(side=side), None, None, _first(undefined))
        crossings = crossed.sum(0)  # [rounds, n, E]
        happened = memory.happened if n == len(memory.happened) else memory.happened.index_select(0, place)
        count = happened + (crossings if rounds == 1 else crossings.cumsum(0))
        interrupted = None
        if self.stops or self.changes:
            interrupted = (self._interrupts(count) & (crossings > 0)).any(2)
            undefined = None if undefined is None else undefined & ~interrupted
        ended = interrupted if undefined is None else undefined if interrupted is None else interrupted | undefined
        if ended is not None and rounds > 1:
            so_far = ended.cumsum(0) == ended  # no round before ended a sample
            interrupted = None if interrupted is None else interrupted & so_far
            undefined = None if undefined is None else undefined & so_far
            kept = so_far.flatten().index_select(0, places[0]).nonzero().flatten()
            places = tuple(x.index_select(0, kept) for x in places)
        row, event, part = places
        if rounds > 1:
            happened = (count - crossings).flatten(0, 1)
        signs_before, steps = before.flatten(1, 2)[part, row, event], place if rounds == 1 else place.repeat(rounds)
        found = EventSteps(record, steps, happened, row, event, thetas[part], thetas[part + 1], signs_before)
        happened = memory.happened.index_put((place,), count[-1])
        ends = (None if steps is None else steps.flatten() for steps in (interrupted, undefined))
        return SearchedSteps(EventMemory(side, happened), found, *ends)

    def locate(self, found: EventSteps) -> tuple[StepEvents, Interruption | None]:
        """The events within steps, and the samples that they interrupt; see `EventRule`."""
        record = found.record
        crossings = self._judged(self._located(found), found.happened)
        events = crossings
        alone = known_all(crossings.cut)  # one crossing in each row, which interrupts its step
        if not alone:
            kept = crossings.kept.nonzero().flatten()
            kept = kept[crossings.theta[kept].argsort(stable=True)]
            events = crossings.take(kept[crossings.row[kept].argsort(stable=True)])
        located = StepEvents(record.sample[events.row], events.event, events.t, events.y, events.stop)
        cut = events if alone else events.take(events.cut.nonzero().flatten())
        if len(cut.row) == 0:
            return located, None
        y_after, memory = self._changed_states(record, cut), None
        if not known_all(cut.stop):  # a stopped sample has no next step
            one = torch.ones_like(events.row)
            happened = found.happened.index_put((events.row, events.event), one, accumulate=True)
            memory = EventMemory(self._side_after(record, crossings, cut, y_after), happened[cut.row])
        return located, Interruption(cut.row, cut.stop, cut.t, cut.y, y_after, memory)

    def value(self, sample: Tensor, which: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """[K] the values of the events `which` [K] for samples [K] at times [K] and states [K, F]."""
        values, _ = self._values(sample, t[None], y[None], None)
        return values[0].gather(1, which[:, None])[:, 0]

    @torch.no_grad()
    def _scan(self, record: StepRecord) -> tuple[Tensor, Tensor]:
        """θ at the ends of the parts of a step, from 0 to 1 [M + 1], and the values at all but the first [M, n, E]."""
        step = record.step
        inside = self.inside(step.y)
        thetas, column = _thetas(inside, step.t.dtype, step.t.device)
        states = states_within(step, inside) if step.inside is None else step.inside
        y = torch.cat([states, step.y_next[None]])
        slope = slopes_within(step, (*inside, 1.0)) if self._sloped else None
        values, _ = self._values(record.sample, torch.addcmul(step.t, column, step.dt), y, slope)
        return thetas, values

    def _values(self, sample: Tensor, t: Tensor, y: Tensor, slope: Tensor | None) -> tuple[Tensor, list[bool]]:
        """[M, n, E] the events' values for the samples [n] at M times [M, n], and which of them return bool.

        Args:
            sample: [n].
            t: [M, n] times.
            y: [M, n, F] states.
            slope: [M, n, F] dy/dt, for events that need it.
        """
        repeated = sample.repeat(len(t)) if self._caller.sample_args else sample
        times, states = t.reshape(-1), y.flatten(0, 1)
        values, is_bool = [], []
        for event in self._events:
            if isinstance(event, SteadyState):
                norm = self._caller.layout.norm
                speed = torch.zeros_like(states) if slope is None else slope.flatten(0, 1)
                value = norm(speed.abs()) - (event.atol + event.rtol * norm(states.abs()))
            else:
                value = self._function_value(event.function, repeated, times, states)
            is_bool.append(value.dtype == torch.bool)
            values.append(torch.where(value, 1.0, -1.0) if value.dtype == torch.bool else value)
        columns = values[0][:, None] if len(values) == 1 else torch.stack(values, 1)
        return columns.unflatten(0, t.shape), is_bool

    def _function_value(self, function: Callable[..., Tensor], sample: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """[n] a function's values for samples [n] at times [n] and states [n, F], real numbers or bool.

        Raises:
            TypeError, ValueError: it returned something else.
        """
        values = self._caller(function, sample, t, y)
        batched = self._caller.layout.batched
        for value in [values] if batched else values:
            if not isinstance(value, Tensor) or not (value.is_floating_point() or value.dtype == torch.bool):
                got = value.dtype if isinstance(value, Tensor) else type(value).__name__
                raise TypeError(f"event: expected a tensor of real numbers or bool, got {got}")
            shape = tuple(t.shape) if batched else ()
            if value.shape != shape:
                raise ValueError(f"event: expected shape {shape}, one number per sample, got {tuple(value.shape)}")
        return values if batched else torch.stack(values)

    def _interrupts(self, count: Tensor) -> Tensor:
        """[..., E] bool, whether an event that happens for the time number `count` [..., E] interrupts a step."""
        stops = count >= self._last
        return stops | self._changes if self.changes else stops

    def _crossed(self, before: Tensor, after: Tensor) -> Tensor:
        """[..., E] bool, whether two signs [..., E] enclose a crossing; reaching 0 is a crossing, leaving 0 is not."""
        crossed = before * after < before.abs()
        return crossed if self._both else crossed & torch.where(before > 0, self._falling, self._rising)

    def _located(self, found: EventSteps) -> "_Crossings":
        """The crossings at their exact places."""
        row, event, sample = found.row, found.event, found.record.sample[found.row]
        bracket = Bracket(found.low, found.high, found.side)
        pieces = PiecewisePolynomial.of_rows([found.record], row, sample, len(found.record.sample))
        constant = pieces.detach()

        def value(theta: Tensor, pieces: PiecewisePolynomial) -> Tensor:
            """[M, X] each event's own value at θ [M, X]."""
            values, _ = self._values(sample, *_at(pieces, theta, sloped=self._sloped))
            if len(self._events) == 1:
                return values[..., 0]
            return values.gather(2, event[None, :, None].expand(len(theta), -1, 1))[..., 0]

        with torch.no_grad():
            bracket = bracket.narrowed(lambda theta: value(theta, constant), constant)
            low, high = value(torch.stack([bracket.low, bracket.high]), constant)
            # return the point just before the crossing, or where a bool is True: restarted there, it does not recur
            theta = torch.where((high == 0) | self._is_bool[event], bracket.high, bracket.low)
            near = 8 * torch.maximum(low.abs(), high.abs())
            near = torch.where(self._is_bool[event], 0, near)
        theta = refined(theta, lambda theta: value(theta[None], pieces)[0])
        t, y, _ = _at(pieces, theta[None], sloped=False)
        no = torch.zeros_like(row, dtype=torch.bool)
        return _Crossings(row, event, theta.detach(), t[0], y[0], bracket.side, near, no, no, no)

    def _judged(self, found: "_Crossings", before: Tensor) -> "_Crossings":
        """The crossings, with which of them happen, stop a sample, and interrupt the step: the first that may do so.

        Args:
            found: X crossings, by row and event.
            before: [n, E] how often each event has happened before.
        """
        row, event, theta = found.row, found.event, found.theta
        same = row * len(self._events) + event
        number = torch.arange(len(row), device=row.device) - torch.searchsorted(same, same)  # of an event in this step
        stop = before[row, event] + number + 1 >= self._last[event]
        cut = stop | self._changes[event]
        first = torch.full_like(before[:, 0], torch.inf, dtype=theta.dtype)
        first = first.scatter_reduce(0, row, torch.where(cut, theta, torch.inf), "amin")[row]
        # of several at the same time the first in the user's order
        candidate = torch.where(cut & (theta == first), event, len(self._events))
        winner = torch.full_like(before[:, 0], len(self._events)).scatter_reduce(0, row, candidate, "amin")[row]
        chosen = (candidate == winner) & (candidate < len(self._events))
        kept = (theta < first) | (~cut & (theta == first)) | chosen
        return found._replace(kept=kept, cut=chosen, stop=stop & chosen)

    def _changed_states(self, record: StepRecord, cut: "_Crossings") -> Tensor:
        """[R, F] the states of interrupted rows, changed where they do not stop."""
        y, sample = cut.y, record.sample[cut.row]
        for number, event in enumerate(self._events):
            if isinstance(event, Event) and event.change is not None:
                of_event = ((cut.event == number) & ~cut.stop).nonzero().flatten()
                if len(of_event):
                    parts = sample[of_event], cut.t[of_event], cut.y[of_event]
                    y = y.index_put((of_event,), self._changed(event.change, *parts))
        return y

    def _changed(self, change: Callable[..., object], sample: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """[K, F] the states after a change."""
        layout = self._caller.layout
        states, value = layout.unpack(y), self._caller(change, sample, t, y)
        value = value if layout.batched else value[0]
        if not same_structure(value, states):
            raise ValueError(f"change: expected a state of shape {shapes(states)} like y, got {shapes(value)}")
        return layout.pack(value)

    @torch.no_grad()
    def _side_after(self, record: StepRecord, crossings: "_Crossings", cut: "_Crossings", y_after: Tensor) -> Tensor:
        """[R, E] the signs from which interrupted rows continue.

        An event that has just happened is on its surface if its function is still as small as rounding, so that it does
        not happen again at once. One whose crossing at the same time did not count keeps its side, so that it does.
        """
        nowhere = torch.full_like(y_after, torch.inf)[None]
        values = self._values(record.sample[cut.row], cut.t[None], y_after[None], nowhere)[0][0]
        shape = len(record.sample), values.shape[1]
        at_cut = crossings.theta.new_full(shape[:1], torch.nan).index_put((cut.row,), cut.theta)
        last = crossings.take((crossings.theta == at_cut[crossings.row]).nonzero().flatten())
        index = last.row, last.event
        near = values.new_full(shape, -1).index_put(index, last.near.to(values.dtype))[cut.row]
        side = values.new_zeros(shape).index_put(index, torch.where(last.kept, 0, last.side).to(values.dtype))[cut.row]
        return torch.where(values.abs() <= near, side, _signs(values))


class _Crossings(NamedTuple):
    """X crossings in the rows of a step."""

    row: Tensor  # [X]
    event: Tensor  # [X]
    theta: Tensor  # [X]
    t: Tensor  # [X] with its gradient
    y: Tensor  # [X, F]
    side: Tensor  # [X] sign before
    near: Tensor  # [X] size of the function's values that are 0 up to rounding
    kept: Tensor  # [X] bool, whether it happens: no other one interrupts the step before
    cut: Tensor  # [X] bool, whether it interrupts the step
    stop: Tensor  # [X] bool, whether it stops the sample

    def take(self, rows: Tensor) -> "_Crossings":
        """Some of the crossings."""
        return _Crossings(*(column[rows] for column in self))


def _inside(eps: float) -> tuple[float, ...]:
    """θ of the points within a step at which signs are compared.

    The first part is short: a sample that starts on the surface soon leaves it, and may be back long before θ = 1/4.
    The others are unequal, since zeros often lie at equal distances, and would all be at the ends of equal parts.
    """
    return eps**0.25, 0.22, 0.47, 0.73


def _places(crossed: Tensor) -> tuple[Tensor, ...]:
    """The steps, events, and parts of the steps [X] of crossings [M, R, n, E] bool, in this order."""
    return crossed.flatten(1, 2).permute(1, 2, 0).nonzero().unbind(1)


def _signs(values: Tensor) -> Tensor:
    """The signs of values; NaN where a value is NaN, whose sign is 0 in torch."""
    return torch.where(values.isnan(), torch.nan, values.sign())


def _last_known(signs: Tensor) -> Tensor:
    """Signs [M, R, n, E], with the last one before in place of NaN, if there is one."""
    number = torch.arange(len(signs), device=signs.device).view(-1, 1, 1, 1)
    return signs.gather(0, torch.where(signs.isnan(), 0, number).cummax(0).values)


def _first(steps: Tensor | None) -> Tensor | None:
    """[R · n] of some steps [R, n] the first of each sample; None: there are none."""
    return None if steps is None else (steps & (steps.cumsum(0) == 1)).flatten()


def _sides(side: Tensor, ends: Tensor, accept: Tensor) -> tuple[Tensor, Tensor]:
    """The signs before each of R rounds [R, n, E] and after the last one [n, E]: those after the last accepted step.

    Args:
        side: [n, E] before the rounds.
        ends: [R, n, E] at the ends of their steps.
        accept: [R, n, 1] bool.
    """
    if len(ends) == 1:
        return side[None], torch.where(accept[0], ends[0], side)
    number = torch.arange(1, len(ends) + 1, device=side.device)[:, None, None]
    last = torch.where(accept, number, 0).cummax(0).values
    after = torch.cat([side[None], ends]).gather(0, last.expand_as(ends))
    return torch.cat([side[None], after[:-1]]), after[-1]


@lru_cache(maxsize=16)  # every step needs them, and they may have to be copied to a device
def _thetas(inside: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """θ from 0 to 1 [M + 1], and all but the first as a column [M, 1]."""
    with torch.inference_mode(False):  # a tensor made in inference mode could not be used in later training
        thetas = torch.tensor([0.0, *inside, 1.0], dtype=dtype, device=device)
        return thetas, thetas[1:, None]


def _at(pieces: PiecewisePolynomial, theta: Tensor, *, sloped: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Times [M, P], states [M, P, F] and, if asked for, their derivatives [M, P, F] at θ [M, P] of P pieces."""
    return *pieces.within(theta), pieces.slope(theta) if sloped else None


def _changes(event: AnyEvent) -> bool:
    return isinstance(event, Event) and event.change is not None


def _directions(event: AnyEvent, is_bool: bool) -> Sequence[bool]:
    """Whether rising and falling crossings count."""
    direction = "falling" if isinstance(event, SteadyState) else event.direction
    if direction == "any" and is_bool:
        direction = "rising"
    return direction != "falling", direction != "rising"
