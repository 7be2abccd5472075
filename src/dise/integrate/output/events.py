"""Events, as users describe them: conditions on time and state, and what happens where they come true."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal

from torch import Tensor

from dise.integrate.problem.state import State
from dise.integrate.value import check_from_zero, check_whole

Function = Callable[..., Tensor]


@dataclass(frozen=True)
class Event:
    """A condition, and what happens to a sample where it comes true.

    The condition is a zero crossing of a function of time and state, in the direction of the integration. A function
    that starts at 0 has no crossing there; leaving 0 and coming back to it is one. A function that returns bool has its
    event where it becomes True.

    Args:
        function: called as function(t, y, *args, *sample_args) with f's arguments, for any n samples; returns [n] real
            numbers or bool ([] with batched=False). Where it is NaN its sample fails; ±inf has a sign.
        direction: "falling" counts crossings from positive to negative (from True to False) only, "rising" the opposite
            ones, "any" both; "any" of a bool is "rising".
        terminal: True stops the sample at the first event, a number n at the n-th, False never. Default: True without
            `change`, False with it.
        change: state map, called as change(t, y, *args, *sample_args) at the event; returns the state, structured like
            y, from which the sample continues. It is not applied where the event stops the sample. None: the sample
            continues as if nothing had happened.

    Raises:
        TypeError: function or change cannot be called.
        ValueError: another direction, or a number below 1; a change that a terminal event would never apply.
    """

    function: Function
    direction: Literal["any", "rising", "falling"] = "any"
    _: KW_ONLY
    terminal: bool | int | None = None
    change: Callable[..., State] | None = None

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(f"event: expected a function of (t, y), got {type(self.function).__name__}")
        if self.direction not in ("any", "rising", "falling"):
            raise ValueError(f"direction: expected 'any', 'rising' or 'falling', got {self.direction!r}")
        if self.change is not None and not callable(self.change):
            raise TypeError(f"change: expected a function of (t, y), got {type(self.change).__name__}")
        _check_terminal(self.terminal)
        if self.change is not None and self.last == 1:
            raise ValueError(
                "change: the first event stops the sample, so its state would never change; use terminal=False, or a "
                "number of events"
            )

    @property
    def last(self) -> int:
        """The number of the event that stops a sample; 0: none does."""
        return int((self.change is None) if self.terminal is None else self.terminal)


@dataclass(frozen=True, kw_only=True)
class SteadyState:
    """The event that the solution has become steady: norm(dy/dt) ≤ atol + rtol · norm(y).

    The norms are root mean squares over a sample's features (the largest over the tensors of a tuple or dict), and
    dy/dt is the derivative of the dense output, so no evaluation of f is needed. A sample that starts in a steady state
    stops in its first step.

    Args:
        rtol: relative tolerance, per unit of t.
        atol: absolute tolerance, units of y per unit of t.
        terminal: see `Event`.

    Raises:
        ValueError: negative tolerances.
    """

    rtol: float = 1e-3
    atol: float = 1e-3
    terminal: bool | int = True

    def __post_init__(self) -> None:
        check_from_zero("rtol", self.rtol)
        check_from_zero("atol", self.atol)
        _check_terminal(self.terminal)

    @property
    def last(self) -> int:
        """See `Event`."""
        return int(self.terminal)


AnyEvent = Event | SteadyState
EventArgument = AnyEvent | Function | Sequence[AnyEvent | Function] | Mapping[str, AnyEvent | Function]


def as_events(event: EventArgument | None) -> dict[str, AnyEvent] | None:
    """`solve`'s argument as events by name, those of a sequence by their numbers; None stays None.

    Raises:
        TypeError: something else than events and functions, or none at all.
    """
    if event is None:
        return None
    if isinstance(event, Mapping):
        named: dict[Any, Any] = dict(event)
    elif isinstance(event, Sequence) and not isinstance(event, str):
        named = {str(number): one for number, one in enumerate(event)}
    else:
        named = {"0": event}
    if not named or not all(isinstance(name, str) for name in named):
        raise TypeError(f"event: expected at least one event, in a dict with names as keys, got {event!r}")
    return {name: one if isinstance(one, Event | SteadyState) else Event(one) for name, one in named.items()}


def check_backsolve(events: Mapping[str, AnyEvent], save_every: int | None) -> None:
    """Raise a ValueError unless a backward solve of the adjoint equation can differentiate what a solve returns."""
    if save_every is not None:
        raise ValueError("save_every: backsolve has no gradients at steps; use gradient='direct' or 'checkpoint'")
    for name, event in events.items():
        if not isinstance(event, Event) or event.last != 1:
            raise ValueError(
                f"event: backsolve differentiates only through events that stop a sample where their function is zero, "
                f"but {name!r} is another; use gradient='direct' or 'checkpoint'"
            )


def _check_terminal(terminal: bool | int | None) -> None:
    if terminal is not None and not isinstance(terminal, bool):
        check_whole("terminal", terminal)
