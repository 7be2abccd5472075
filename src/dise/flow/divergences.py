"""Divergence of vector fields, exact or estimated, and the field of points together with their log-density."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from dise.integrate.value import Value, check_whole

VectorField = Callable[[Tensor, Tensor], Tensor]


class Divergence(Protocol):
    """How a flow computes the divergence of its vector field."""

    draws: ClassVar[bool]  # whether it needs random numbers

    def probes(self, x: Tensor, event_dims: int) -> tuple[Tensor, ...]:
        """Random numbers [B, ...], drawn once per solve for points x [B, ...]; none for an exact divergence."""
        ...

    def __call__(
        self, f: VectorField, t: Tensor, z: Tensor, probes: tuple[Tensor, ...], event_dims: int
    ) -> tuple[Tensor, Tensor]:
        """f(t, z) and its divergence [..., 1], a point's coordinates being the last `event_dims` dimensions of z."""
        ...


@dataclass(frozen=True)
class ExactDivergence(Value):
    """Σ_i ∂f_i/∂z_i by derivatives in the D coordinate directions, several at once.

    Args:
        chunk: number of directions at once, which bounds the memory; None: all D.
        mode: "forward" propagates directions along with the values (`torch.func.jvp`); "reverse" takes a backward pass
            per coordinate, for an f whose operations have no forward derivative or cannot be mapped over, and ignores
            `chunk`.

    Raises:
        ValueError: an argument (named in the message) is not as described.
    """

    draws: ClassVar[bool] = False
    chunk: int | None = None
    mode: Literal["forward", "reverse"] = "forward"

    def __post_init__(self) -> None:
        if self.chunk is not None:
            check_whole("chunk", self.chunk)
        if self.mode not in ("forward", "reverse"):
            raise ValueError(f"mode: expected 'forward' or 'reverse', got {self.mode!r}")

    def probes(self, x: Tensor, event_dims: int) -> tuple[Tensor, ...]:
        """None."""
        return ()

    def __call__(
        self, f: VectorField, t: Tensor, z: Tensor, probes: tuple[Tensor, ...], event_dims: int
    ) -> tuple[Tensor, Tensor]:
        """f(t, z) and its divergence [..., 1]."""
        if self.mode == "forward":
            return _with_gradients(f, t, z, lambda dz_of, z, _: _forward_trace(dz_of, z, event_dims, self.chunk))
        return _with_gradients(f, t, z, lambda dz_of, z, graph: _reverse_trace(dz_of, z, event_dims, graph))


@dataclass(frozen=True)
class HutchinsonDivergence(Value):
    """Hutchinson's estimate, the mean of εᵀ (∂f/∂z) ε over random directions ε: one backward pass per direction.

    Directions are drawn once per solve and kept, so that a solve integrates one smooth function. The estimate is
    unbiased; its standard deviation over draws decreases with 1/√number.

    Args:
        number: of directions per point.
        distribution: of ε: "rademacher" (±1, the smaller variance) or "gaussian".
        generator: of the draws; None: torch's global one.

    Raises:
        ValueError: an argument (named in the message) is not as described.

    Source: Grathwohl et al., FFJORD, 2019, section 3.1.
    """

    draws: ClassVar[bool] = True
    number: int = 1
    distribution: Literal["rademacher", "gaussian"] = "rademacher"
    generator: torch.Generator | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        check_whole("number", self.number)
        if self.distribution not in ("rademacher", "gaussian"):
            raise ValueError(f"distribution: expected 'rademacher' or 'gaussian', got {self.distribution!r}")

    def probes(self, x: Tensor, event_dims: int) -> tuple[Tensor, ...]:
        """Directions [B, number, ...] for points x [B, ...]."""
        shape = (x.shape[0], self.number, *x.shape[1:])
        if self.distribution == "gaussian":
            return (torch.randn(shape, generator=self.generator, dtype=x.dtype, device=x.device),)
        return (torch.randint(0, 2, shape, generator=self.generator, device=x.device).to(x.dtype) * 2 - 1,)

    def __call__(
        self, f: VectorField, t: Tensor, z: Tensor, probes: tuple[Tensor, ...], event_dims: int
    ) -> tuple[Tensor, Tensor]:
        """f(t, z) and its divergence [..., 1]."""
        directions = probes[0].unbind(1)
        return _with_gradients(
            f, t, z, lambda dz_of, z, graph: _hutchinson_trace(dz_of, z, directions, event_dims, graph)
        )


def divergence(f: VectorField, t: Tensor, z: Tensor) -> Tensor:
    """div f(t, z) = Σ_i ∂f_i/∂z_i at every point, exactly (see `ExactDivergence`).

    Differentiable to f's parameters, t and z where gradients are enabled; also works where they are disabled.

    Args:
        f: (t, z) → dz/dt in z's shape. The dz/dt of a point may depend on that point alone: a dependence on other
            points would be added to the wrong divergence.
        t: time, in whatever shape f takes.
        z: [..., D] points.

    Returns:
        [..., 1].

    Raises:
        ValueError: f returned another shape.
    """
    return ExactDivergence()(f, t, z, (), 1)[1]


class AugmentedField(nn.Module):
    """The vector field of points and their log-density, made from the field f(t, z, *conditions) of the points.

    Args:
        f: as in `Flow`.
        divergence: how to compute it; None: by f's own `with_divergence` if there is one, else exactly.
        event_dims: number of dimensions of a point.
    """

    def __init__(self, f: nn.Module, divergence: Divergence | None = None, event_dims: int = 1) -> None:
        super().__init__()
        self.f, self.divergence, self.event_dims = f, divergence, event_dims

    def probes(self, x: Tensor) -> tuple[Tensor, ...]:
        """What the divergence draws for a solve of points x [B, ...]."""
        return () if self.divergence is None else self.divergence.probes(x, self.event_dims)

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor], *further: Tensor) -> tuple[Tensor, Tensor]:
        """(dz/dt [n, ...], d log p/dt = −div f [n, ..., 1]) at (z, log p), independent of log p.

        Args:
            t: times.
            state: points and their log-density.
            further: f's conditions, then the probes.
        """
        z = state[0]
        closed_form = getattr(self.f, "with_divergence", None) if self.divergence is None else None
        if closed_form is not None:
            dz, div = closed_form(t, z, *further)
            return dz, -div
        how = self.divergence or ExactDivergence()
        probes, conditions = (further[-1:], further[:-1]) if how.draws else ((), further)
        dz, div = how(lambda t, z: self.f(t, z, *conditions), t, z, probes, self.event_dims)
        return dz, -div


Trace = Callable[[Callable[[Tensor], Tensor], Tensor, bool], tuple[Tensor, Tensor]]


def _with_gradients(f: VectorField, t: Tensor, z: Tensor, trace: Trace) -> tuple[Tensor, Tensor]:
    """f(t, z) and its trace, with gradients where they are enabled; derivatives in z work where they are not.

    `trace` receives z → f(t, z), z, and whether to make graphs of derivatives.
    """
    differentiable = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.set_grad_enabled(differentiable):
        # autograd accepts no inference tensors, but it accepts their clones
        t, z = (x.clone() if x.is_inference() else x for x in (t, z))

        def dz_of(z: Tensor) -> Tensor:
            dz = f(t, z)
            if dz.shape != z.shape:
                raise ValueError(f"f: expected dz/dt of shape {list(z.shape)} like z, got {list(dz.shape)}")
            return dz

        dz, div = trace(dz_of, z, differentiable)
    return (dz, div) if differentiable else (dz.detach(), div.detach())


def _forward_trace(
    dz_of: Callable[[Tensor], Tensor], z: Tensor, event_dims: int, chunk: int | None
) -> tuple[Tensor, Tensor]:
    """f and its trace by forward derivatives in coordinate directions, the same at all points: they are independent."""
    first = z.ndim - event_dims
    event = z.shape[first:]
    number = event.numel()
    basis = torch.eye(number, dtype=z.dtype, device=z.device).reshape(number, *(1,) * first, *event)

    def diagonal(direction: Tensor) -> tuple[Tensor, Tensor]:
        dz, derivative, *_ = torch.func.jvp(dz_of, (z,), (direction.expand_as(z),))
        return dz, (derivative * direction).flatten(first).sum(-1)

    total = torch.zeros(z.shape[:first], dtype=z.dtype, device=z.device)
    for directions in basis.split(chunk or number):
        dz, parts = torch.func.vmap(diagonal, out_dims=(None, 0))(directions)  # type: ignore[arg-type]
        total = total + parts.sum(0)
    return dz, total.unsqueeze(-1)


def _reverse_trace(dz_of: Callable[[Tensor], Tensor], z: Tensor, event_dims: int, graph: bool) -> tuple[Tensor, Tensor]:
    """f and its trace by a backward pass per coordinate: points are independent, so one serves all points."""
    first = z.ndim - event_dims

    def product(i: int, dz: Tensor, z: Tensor) -> Tensor:
        coordinate = dz.flatten(first)[..., i].sum()
        (gradient,) = torch.autograd.grad(coordinate, z, retain_graph=True, create_graph=graph, materialize_grads=True)
        return gradient.flatten(first)[..., i : i + 1]

    number = z.shape[first:].numel()
    return _by_backward_passes(dz_of, z, first, lambda dz, z: sum(product(i, dz, z) for i in range(number)))


def _hutchinson_trace(
    dz_of: Callable[[Tensor], Tensor], z: Tensor, directions: tuple[Tensor, ...], event_dims: int, graph: bool
) -> tuple[Tensor, Tensor]:
    """f and the mean of εᵀ (∂f/∂z) ε over directions ε in z's shape."""
    first = z.ndim - event_dims

    def product(direction: Tensor, dz: Tensor, z: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(
            dz, z, direction, retain_graph=True, create_graph=graph, materialize_grads=True
        )
        return (gradient * direction).flatten(first).sum(-1, keepdim=True)

    return _by_backward_passes(
        dz_of, z, first, lambda dz, z: sum(product(direction, dz, z) for direction in directions) / len(directions)
    )


def _by_backward_passes(
    dz_of: Callable[[Tensor], Tensor], z: Tensor, first: int, trace: Callable[[Tensor, Tensor], Any]
) -> tuple[Tensor, Tensor]:
    """f, and what backward passes from it to z make of it; 0 if f is constant."""
    with torch.enable_grad():
        z = z if z.requires_grad else z.detach().requires_grad_()
        dz = dz_of(z)
        return dz, trace(dz, z) if dz.requires_grad else torch.zeros_like(dz.flatten(first)[..., :1])
