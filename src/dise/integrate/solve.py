"""`solve`: checks the arguments, answers the integrator's requests and returns a Solution."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from math import isinf
from typing import Any, cast

import torch
from torch import Tensor

from dise.integrate.arguments import as_breaks, as_save_points, check_options, check_saving
from dise.integrate.backsolve import Backsolve
from dise.integrate.empty_spans import integrate_nonempty
from dise.integrate.exact import inner, precision_of
from dise.integrate.integrator import Integrator
from dise.integrate.integrators import Adaptive
from dise.integrate.options import Compile, Gradient, SolveOptions
from dise.integrate.output.events import EventArgument, as_events, check_backsolve
from dise.integrate.output.functions import FunctionCaller, Values
from dise.integrate.output.observers import Progress
from dise.integrate.output.saving import SavePoints
from dise.integrate.outputs import Outputs, Wanted
from dise.integrate.problem.breaks import Breaks
from dise.integrate.problem.field import Field
from dise.integrate.problem.problem import Problem
from dise.integrate.problem.requests import Request, Result, drive
from dise.integrate.problem.run import MakeRounds, Run
from dise.integrate.problem.state import Layout, State
from dise.integrate.quadrature import Separated
from dise.integrate.solution import Solution, all_succeeded
from dise.integrate.start import Start
from dise.integrate.stepping.statistics import Accumulate, Accumulators
from dise.integrate.tracing import check_compiled, check_transforms


def solve(
    f: Callable[..., State],
    y0: State,
    t0: float | Tensor,
    t1: float | Tensor,
    integrator: Integrator,
    *,
    args: Sequence[Any] = (),
    sample_args: Sequence[Tensor] = (),
    save_at: Tensor | Sequence[float] | None = None,
    save_mask: Tensor | None = None,
    jump_at: Tensor | Sequence[float] | None = None,
    jump_mask: Tensor | None = None,
    step_at: Tensor | Sequence[float] | None = None,
    step_mask: Tensor | None = None,
    save: Callable[..., Values] | None = None,
    save_every: int | None = None,
    dense: bool = False,
    event: EventArgument | None = None,
    batched: bool = True,
    drop_finished: bool = True,
    accumulate: Accumulate | None = None,
    differentiate_step_sizes: bool = False,
    gradient: Gradient = "direct",
    compile: Compile = False,
    record: bool = False,
    progress: Callable[[Progress], object] | None = None,
    throw: bool = True,
) -> Solution:
    """Solve y' = f(t, y), y(t0) = y0 for every sample of a batch, each on its own.

    Args:
        f: vector field, called as f(t, y, *args, *sample_args) with t [n, 1, …, 1] and y [n, ...] of the n ≤ B
            samples that need an evaluation; returns dy/dt in y's structure and shapes. With batched=False t is [].
            The solver's times are float64, whatever the dtype of y, and float32 on devices without float64 (MPS); f
            receives them in the real dtype of y.
        y0: [B, ...] initial state, or a tuple or dict of such tensors, of one device and one dtype: float64, float32,
            complex128, complex64, bfloat16 or float16. Norms of complex states use the modulus. With half precision f
            receives and returns the state's dtype, and the solver adds up in float32.
        t0, t1: start and end, numbers or [B] tensors. Forward, backward and zero-length spans may be mixed in a batch.
            A zero-length span needs no evaluation of f, or one if t0 or t1 requires a gradient.
        integrator: how to solve, e.g. `dise.Dopri5(rtol=1e-3, atol=1e-3)`.
        args: arguments that f receives unchanged.
        sample_args: tensors [B, ...] with one row per sample (labels, conditions, …). f receives the rows on which it
            is called.
        save_at: save points, times [T] for all samples or [B, T] per sample, in any order, within each sample's span;
            `Solution.saved` holds the states there. They cost no evaluation of f and change no step, and are written
            when a step passes them, so memory grows with T alone. With batched=False [T].
        save: function save(t, y, *args, *sample_args) → [n, ...], or a tuple or dict of such tensors, whose values are
            saved instead of the states. n is the number of save points that steps have just passed, of any samples.
        save_every: save the states (or what `save` returns) at the end of every n-th accepted step of each sample,
            instead of at save points; `Solution.saved_t` holds the times. Rows are padded at the end.
        event: function event(t, y, *args, *sample_args) → [n], numbers or bool, at whose zero crossing (or where it
            becomes True) each sample stops; an `Event`, which also has a direction, may happen several times or change
            the state; a `SteadyState`; or several of these, in a sequence or a dict with names. `Solution.event` marks
            the stopped samples, `Solution.which` says by which event, `Solution.t` and `Solution.y` hold the times and
            states of these events, `Solution.events` those of all, all differentiable. A sample that no event stops
            continues to t1, which may be infinite if the integrator is adaptive. Events are looked for at a few points
            of each step's dense output. `error` and `accumulated` include the whole of an interrupted step.

        jump_at: times at which f may jump, such as doses or switches, [T] for all samples or [B, J] per sample; those
            outside of a sample's span are ignored. A step ends there. The stages before it receive times before the
            jump, those after it times after it, in the dtype of f's t, and f is evaluated again to go on. The state is
            continuous: a save point there has one value. Gradients flow to jump_at.
        step_at: times at which a step ends, given like jump_at, where f has a kink, for example. They cost no
            evaluation of f of their own. Neither kind of times makes a method choose a first step again.

    Other Args:
        jump_mask, step_mask: [B, J] or [T] bool; False marks a time as padding.
        save_mask: [B, T] or [T] bool; False marks a save point as padding: its time may be any number, its state is 0.
        dense: keep the steps, so that `Solution.evaluate` returns the state at any time within the span.
        batched: False treats the whole state as one system: one step size, scalar t, norms over all of it.
        drop_finished: remove finished samples from the batch, so that f is called only on rows that still run, in
            training too. False: f is always called on all samples, for an f that mixes them, such as batch
            normalization in training mode.
        accumulate: function of an attempted `Step` of n samples → [n], summed over each sample's accepted steps
            into `Solution.accumulated` (what regularizers are made of); or a `Statistic`, whose values have any shape
            and may be reduced to their maximum or minimum; or a dict of statistics.
        differentiate_step_sizes: include the choice of step sizes in gradients; by default step sizes are constants.
        gradient: "direct" keeps what the backward pass needs of every step; "checkpoint" keeps √steps states and takes
            the steps between them again: less memory, the same gradients, one more forward pass. f is then called
            again during the backward pass. "backsolve" integrates the adjoint equation backwards: memory does not grow
            with the number of steps, but gradients are exact only up to the tolerance, `Solution.error` and
            `accumulated` have none, and a backward solve may be unstable. Gradients are those in the
            tensors on which f's value at the start depends; a `Backsolve` names others, or another integrator for going
            back. Both call f with the weights and the autocast that the forward pass had.
        compile: True makes one graph of a whole step of a Runge–Kutta method (or of several, see the guide), f
            included, by `torch.compile`; results may differ from eager ones by rounding. "fast" also lets float32
            tanh err by 6 units in the last place and sums narrow matrix products in another order, on the CPU. A
            mapping gives torch.compile's arguments, e.g. {"mode": "max-autotune-no-cudagraphs"}. Graphs are kept for
            later solves with the same f and integrator. f must be traceable as a whole (no graph breaks). Integrators
            that choose run their candidates one after the other; the backward solve of "backsolve" is not compiled;
            graphs have no second derivatives.
        record: keep every accepted step's end and error ratio in `Solution.steps`.
        progress: called with a `Progress` after each round of attempted steps (with gradient="checkpoint" after each
            segment of rounds).
        throw: raise if a sample fails; False returns each sample's status and last good state. Gradients of
            parameters are not usable where a failed sample was part of the batch.

    Returns:
        the `Solution`; gradients flow by backpropagation through the accepted steps to y0, f's parameters, args,
        sample_args, t0, t1 and save_at. An attempted step that left f's domain (f was NaN or infinite there) is
        retried with a shorter one, but leaves NaN gradients, since 0 · NaN is NaN in f's backward pass: train with a
        first_step that stays inside.

    Raises:
        TypeError, ValueError: an argument (named in the message) is not as described, or f mixes samples (with
            batched=True and drop_finished=True; noticed where samples first leave the batch, once per f).
        SolveError: a sample failed and throw is True.
    """
    options = SolveOptions(
        batched=batched,
        drop_finished=drop_finished,
        gradient=gradient,
        differentiate_step_sizes=differentiate_step_sizes,
        compile=compile,
    )
    functions = {"f": f, "save": save, "progress": progress}
    check_options({"dense": dense, "record": record, "throw": throw}, functions)
    check_saving(save_at, save_every, save, save_mask)
    events = as_events(event)
    endless = events is not None
    start = Start.of(y0, t0, t1, integrator, args=args, sample_args=sample_args, batched=batched, endless=endless)
    breaks = as_breaks((jump_at, jump_mask), (step_at, step_mask), start.span, start.problem.layout)
    wanted = Wanted(
        points=as_save_points(save_at, save_mask, start.span, batched=batched),
        save=save,
        save_every=save_every,
        events=events,
        statistics=None if accumulate is None else _statistics(accumulate, options, integrator),
        dense=dense,
        record=record,
        progress=progress,
    )
    start = start if breaks is None else start.with_breaks(breaks)
    with precision_of(integrator, start.problem.y0.device.type):
        solution = _solved(f, start, inner(integrator), options, wanted)
    return solution.raise_for_status() if throw else solution


def _solved(
    f: Callable[..., State], start: Start, integrator: Integrator, options: SolveOptions, wanted: Wanted
) -> Solution:
    """The solution, whether or not samples failed."""
    back = options.backsolve(integrator, dense=wanted.dense)
    checkpoint = options.gradient == "checkpoint" and torch.is_grad_enabled()
    _check_gradient(back, wanted, start.problem.breaks, checkpoint=checkpoint)
    problem = start.problem if back is None else start.problem.detach()
    plain = start.field(f, problem, whole=not options.drop_finished)
    field, rounds = _compiled(plain, options.compile)
    caller = FunctionCaller(problem.layout, start.args, start.sample_args)
    outputs = Outputs.of(wanted, problem, caller, states_only=back is not None)
    quadrature = None
    # what is wanted within steps, and gradients that f is called again for, need all tensors of the state
    if options.drop_finished and not (wanted.whole_steps or back or checkpoint or options.compile):
        apart = Separated.of(plain, problem, integrator)
        if apart is not None:
            field, problem, integrator, quadrature = apart
    run = Run(
        field=field,
        rounds=rounds,
        observers=outputs.observers if quadrature is None else (*outputs.observers, quadrature),
        events=outputs.search,
        endless=outputs.search is not None and (problem.span is None or isinf(problem.span[1])),
        drop_finished=options.drop_finished,
        differentiate_step_sizes=options.differentiate_step_sizes,
        accumulate=wanted.statistics,
        checkpoint=checkpoint,
    )
    answers = None
    if back is not None:
        from dise.integrate.adjoint import ForwardAnswers  # with the backward solve, which other solves do not need

        answers = ForwardAnswers(field, plain, problem.y0.device.type)
    with nullcontext() if back is None else torch.no_grad():
        result = _integrated(integrator, problem, run, answers or field, wanted.points)
        result = result if quadrature is None else quadrature.finish(result)
        saved, saved_t = outputs.saved(result)
    points = outputs.points
    if answers is not None and back is not None and back.integrator is not None:
        adjoint = answers.adjoint(start.problem, back, back.integrator, run, outputs.stopped)
        result, states = adjoint.attach(result, wanted.points, cast(Tensor | None, saved))
        if wanted.points is not None and states is not None:
            points = SavePoints(*wanted.points, problem, caller, wanted.save)
            saved = points.apply(states, result.t)
    return _solution(
        result,
        start.problem.layout,
        calls=field.calls + (0 if quadrature is None else quadrature.calls),
        saved=saved if points is None or saved is None else points.in_structure(saved),
        saved_t=saved_t,
        **outputs.fields(wanted, problem, result, start.span),
    )


def _check_gradient(back: Backsolve | None, wanted: Wanted, breaks: Breaks | None, *, checkpoint: bool) -> None:
    """Raise an error unless the way to gradients, if it is not the direct one, goes with the other arguments."""
    if checkpoint or back is not None:
        check_transforms("checkpoint" if checkpoint else "backsolve")
    if back is not None:
        check_backsolve(wanted.events or {}, wanted.save_every)
        if breaks is not None and breaks.times.requires_grad:
            raise ValueError(
                "jump_at, step_at: backsolve has no gradients in them; detach them, or use gradient='direct'"
            )


def _statistics(accumulate: Accumulate, options: SolveOptions, integrator: Integrator) -> Accumulators:
    """The running statistics, unless they evaluate f where that is not possible."""
    statistics = Accumulators(accumulate)
    if statistics.calls_field and options.compile:
        raise ValueError(
            "accumulate: a statistic evaluates f, whose derivatives cannot be compiled into a step; use compile=False"
        )
    if statistics.calls_field and integrator.chooses and not options.drop_finished:
        raise ValueError(
            "accumulate: a statistic evaluates f on the samples that take a step, a part of the batch with "
            f"{type(integrator).__name__}; drop_finished=False needs an integrator that is the same for all"
        )
    return statistics


def end_state(
    f: Callable[..., State],
    y0: State,
    t0: float | Tensor,
    t1: float | Tensor,
    integrator: Integrator,
    options: SolveOptions,
    *,
    args: Sequence[Any] = (),
    sample_args: Sequence[Tensor] = (),
) -> State:
    """The state at t1 alone: `Solution.y` of a solve with these options, in less time where batches are small.

    Arguments and errors are those of `solve`.
    """
    others = options.compile is not False or (options.gradient != "direct" and torch.is_grad_enabled())
    # fields that torch compiled, or others wrapped, have it by `__getattr__`, which takes time where it is absent
    if others or (isinstance(inner(integrator), Adaptive) and hasattr(f, "without_quadrature")):
        return solve(f, y0, t0, t1, integrator, args=args, sample_args=sample_args, **options.keywords()).y
    if not callable(f):
        check_options({}, {"f": f})
    start = Start.of(y0, t0, t1, integrator, args=args, sample_args=sample_args, batched=options.batched, end_only=True)
    field = start.field(f, start.problem, whole=not options.drop_finished)
    run = Run(
        field=field,
        drop_finished=options.drop_finished,
        differentiate_step_sizes=options.differentiate_step_sizes,
        end_only=True,
    )
    with precision_of(integrator, start.problem.y0.device.type):
        result = _integrated(inner(integrator), start.problem, run, field, None)
    if result.status is None or all_succeeded(result.status):
        return start.problem.layout.unpack(result.y)
    # a complete solve says what failed
    return solve(f, y0, t0, t1, integrator, args=args, sample_args=sample_args, **options.keywords()).y


def _compiled(field: Field, compile: Compile) -> tuple[Field, MakeRounds | None]:
    """The field and the factory of the loop's rounds, compiled as `compile` says; None: eager rounds."""
    if compile is False:
        return field, None
    check_compiled()
    from dise.integrate.compile.rounds import CompiledField, graph_rounds  # they import torch's compiler

    graphs = CompiledField(field, compile)
    return graphs, partial(graph_rounds, graphs)


def _integrated(
    integrator: Integrator,
    problem: Problem,
    run: Run,
    answer: Callable[[Request], Tensor],
    points: tuple[Tensor, Tensor] | None,
) -> Result:
    """The result of the integration, with the answers to its requests."""
    times = (problem.t0, problem.t1, *(points or ())[:1])
    in_time = torch.is_grad_enabled() and any(t.requires_grad for t in times)
    return drive(integrate_nonempty(integrator, problem, run, gradients_in_time=in_time), answer)


def _solution(result: Result, layout: Layout, **further: Any) -> Solution:
    """The result in the structure of the user's state, with further fields of the solution."""
    values = result._asdict()
    del values["accumulated"]
    if not layout.batched:
        values |= {name: x.reshape(()) for name, x in values.items() if name not in ("y", "k1") and x is not None}
    return Solution(**(values | {"y": layout.unpack(result.y), "k1": layout.unpack(result.slope)}), **further)
