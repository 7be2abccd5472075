"""Divergence of vector fields, exact or estimated, and the field of points together with their log-density."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal, Protocol, cast

import torch
from torch import Tensor, nn

from dise.integrate.argument_types import checked_arguments
from dise.integrate.dependencies import auxiliary_leaf
from dise.integrate.tracing import has_values, in_forward_mode, in_transform, untracked
from dise.integrate.value import Value, check_whole, keep_plain

VectorField = Callable[[Tensor, Tensor], Tensor]

FEW = 4  # directions; mapping over fewer costs more than it saves
MANY_POINTS = 1024
AT_ONCE = 2**13  # numbers in the points whose derivatives are taken at once, of many on the CPU


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


@checked_arguments
@dataclass(frozen=True)
class ExactDivergence(Value):
    """Σ_i ∂f_i/∂z_i by derivatives in the D coordinate directions, several at once.

    Args:
        chunk: number of directions at once, which bounds the memory; None: as many as are fast, those of 2¹⁷
            coordinates in all on the CPU, of 2²³ on other devices. Backward passes on the CPU that make no graph are
            taken one by one for fewer than 4 directions, and for 1,024 points or more.
        mode: "reverse" evaluates f once and takes backward passes, one by one where they cannot be mapped over;
            "forward" propagates directions along with the values (`torch.func.jvp`), for an f without a backward pass.

    Raises:
        ValueError: an argument (named in the message) is not as described.
    """

    draws: ClassVar[bool] = False
    chunk: int | None = None
    mode: Literal["reverse", "forward"] = "reverse"

    def __post_init__(self) -> None:
        keep_plain(self)
        if self.chunk is not None:
            check_whole("chunk", self.chunk)
        if self.mode not in ("reverse", "forward"):
            raise ValueError(f"mode: expected 'reverse' or 'forward', got {self.mode!r}")

    def probes(self, x: Tensor, event_dims: int) -> tuple[Tensor, ...]:
        """None."""
        return ()

    def __call__(
        self, f: VectorField, t: Tensor, z: Tensor, probes: tuple[Tensor, ...], event_dims: int
    ) -> tuple[Tensor, Tensor]:
        """f(t, z) and its divergence [..., 1]."""
        event = z.shape[z.ndim - event_dims :]
        number = event.numel()
        # points are independent, so one direction serves all points
        directions = torch.eye(number, dtype=z.dtype, device=z.device)
        directions = directions.reshape(number, *(1,) * (z.ndim - event_dims), *event)
        trace = _reverse_trace if self.mode == "reverse" else _forward_trace
        return _with_gradients(
            f, t, z, lambda dz_of, z, graph: trace(dz_of, z, directions, self.chunk, event_dims, graph)
        )


@checked_arguments
@dataclass(frozen=True)
class HutchinsonDivergence(Value):
    """Hutchinson's estimate, the mean of εᵀ (∂f/∂z) ε over random directions ε, by backward passes through f.

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
        keep_plain(self)
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
        directions = probes[0].movedim(1, 0)

        def trace(dz_of: Callable[[Tensor], Tensor], z: Tensor, graph: bool) -> tuple[Tensor, Tensor]:
            dz, total = _reverse_trace(dz_of, z, directions, None, event_dims, graph)
            return dz, total / len(directions)

        return _with_gradients(f, t, z, trace)


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
        TypeError: complex points.
        ValueError: f returned another shape.
    """
    return ExactDivergence()(f, t, z, (), 1)[1]


Quadrature = Literal["stages", "lobatto"]  # how log-densities are integrated; see `Flow`


class AugmentedField(nn.Module):
    """The vector field of points and their log-density, made from the field f(t, z, *conditions) of the points.

    Args:
        f: as in `Flow`.
        divergence: how to compute it; None: by f's own `with_divergence` if there is one, else exactly.
        event_dims: number of dimensions of a point.
        quadrature: "lobatto" lets `solve` integrate the points alone, and the log-density along them; see `Flow`.

    Raises:
        ValueError: another quadrature.
    """

    def __init__(
        self,
        f: nn.Module,
        divergence: Divergence | None = None,
        event_dims: int = 1,
        quadrature: Quadrature = "stages",
    ) -> None:
        super().__init__()
        if quadrature not in ("stages", "lobatto"):
            raise ValueError(f"quadrature: expected 'stages' or 'lobatto', got {quadrature!r}")
        self.f, self.divergence, self.event_dims, self.quadrature = f, divergence, event_dims, quadrature

    @property
    def without_quadrature(self) -> Callable[..., Tensor] | None:
        """The field of the points, called as `forward`, if `solve` may integrate the log-density along them."""
        if self.quadrature == "stages":
            return None
        draws = self.divergence is not None and self.divergence.draws
        return partial(_without_probes, self.f) if draws else self.f

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
        rows = _rows_at_once(t, z)
        if rows == len(z):
            dz, div = self._by_derivatives(t, z, *further)
        else:
            parts = zip(*(x.split(rows) for x in (t, z, *further)), strict=True)
            dz, div = map(torch.cat, zip(*(self._by_derivatives(*part) for part in parts), strict=True))
        return dz, -div

    def _by_derivatives(self, t: Tensor, z: Tensor, *further: Tensor) -> tuple[Tensor, Tensor]:
        """f [n, ...] and its divergence [n, ..., 1]."""
        how = self.divergence or ExactDivergence()
        probes, conditions = (further[-1:], further[:-1]) if how.draws else ((), further)
        return how(lambda t, z: self.f(t, z, *conditions), t, z, probes, self.event_dims)


def _rows_at_once(t: Tensor, z: Tensor) -> int:
    """How many rows of points z [n, ...] have their derivatives taken at once: n, or fewer of very many on the CPU.

    What backward passes keep of more rows would leave the processor's cache, and be given back to the system and taken
    again with each pass.
    """
    number = len(z) if t.ndim else 0  # one system has no rows
    if number <= MANY_POINTS or z.numel() <= AT_ONCE or z.device.type != "cpu" or not untracked(z):
        return len(z)
    most = max(MANY_POINTS, AT_ONCE * number // z.numel())
    return math.ceil(number / math.ceil(number / most))  # parts of equal size


def _without_probes(f: nn.Module, t: Tensor, z: Tensor, *further: Tensor) -> Tensor:
    """dz/dt [n, ...] at z [n, ...]; `further`: f's conditions, then the probes."""
    return cast(Tensor, f(t, z, *further[:-1]))


Trace = Callable[[Callable[[Tensor], Tensor], Tensor, bool], tuple[Tensor, Tensor]]


def _with_gradients(f: VectorField, t: Tensor, z: Tensor, trace: Trace) -> tuple[Tensor, Tensor]:
    """f(t, z) and its trace, with gradients where they are enabled; derivatives in z work where they are not.

    `trace` receives z → f(t, z), z, and whether to make graphs of derivatives.
    """
    if z.is_complex():  # backward passes would give the conjugate
        raise TypeError(f"z: expected real points, got {z.dtype}")
    differentiable = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.set_grad_enabled(differentiable):
        # autograd accepts no inference tensors, but it accepts their clones
        t, z = (x.clone() if x.is_inference() else x for x in (t, z))

        def dz_of(z: Tensor) -> Tensor:
            dz = f(t, z)
            if not isinstance(dz, Tensor) or dz.shape != z.shape:
                got = list(dz.shape) if isinstance(dz, Tensor) else type(dz).__name__
                raise ValueError(f"f: expected dz/dt of shape {list(z.shape)} like z, got {got}")
            return dz

        dz, div = trace(dz_of, z, differentiable)
    return (dz, div) if differentiable or in_forward_mode() else (dz.detach(), div.detach())


def _fast_chunk(z: Tensor) -> int:
    """Number of directions at once whose derivatives, of z's size each, stay in the processor's cache."""
    number = (2**17 if z.device.type == "cpu" else 2**23) // max(z.numel(), 1)
    return number if number >= FEW else 1


def _fast_backward_chunk(z: Tensor, number: int, event_dims: int, graph: bool) -> int:
    """As `_fast_chunk`, of `number` directions in all, for backward passes, which make graphs or do not.

    On the CPU a backward pass through that many points is long beside its overhead, and mapping saves nothing else.
    """
    points = z.shape[: z.ndim - event_dims].numel()
    if z.device.type == "cpu" and not graph and (number < FEW or points >= MANY_POINTS):
        return 1
    return _fast_chunk(z)


def _forward_trace(
    dz_of: Callable[[Tensor], Tensor], z: Tensor, directions: Tensor, chunk: int | None, event_dims: int, graph: bool
) -> tuple[Tensor, Tensor]:
    """f and Σ εᵀ (∂f/∂z) ε over directions ε [K, ...], which broadcast to z, by forward derivatives."""
    first = z.ndim - event_dims

    def product(direction: Tensor) -> tuple[Tensor, Tensor]:
        dz, derivative, *_ = torch.func.jvp(dz_of, (z,), (direction.expand_as(z),), strict=True)
        return dz, (derivative * direction).flatten(first).sum(-1)

    total = torch.zeros(z.shape[:first], dtype=z.dtype, device=z.device)
    try:
        for some in directions.split(chunk or _fast_chunk(z)):
            values, products = torch.func.vmap(product)(some)  # out_dims=None would refuse what an outer vmap maps over
            total = total + products.sum(0)
    except RuntimeError as error:
        if "strict=True" not in str(error):
            raise
        return _constant(dz_of, z), total.unsqueeze(-1)
    return values[0], total.unsqueeze(-1)


def _reverse_trace(
    dz_of: Callable[[Tensor], Tensor], z: Tensor, directions: Tensor, chunk: int | None, event_dims: int, graph: bool
) -> tuple[Tensor, Tensor]:
    """As `_forward_trace`, by one evaluation of f and backward passes from it; 0 if f is constant."""
    first = z.ndim - event_dims
    chunk = chunk or _fast_backward_chunk(z, len(directions), event_dims, graph)
    if in_transform() or in_forward_mode():
        return _transformed_trace(dz_of, z, directions, chunk, first)
    with torch.enable_grad():
        z = z if z.requires_grad else auxiliary_leaf(z)
        dz = dz_of(z)
        total = torch.zeros(z.shape[:first], dtype=z.dtype, device=z.device)
        for some in directions.split(chunk):
            gradients = _gradients(dz, z, some.expand(len(some), *z.shape), graph)
            if gradients is None:
                return _constant(dz_of, z), total.unsqueeze(-1)
            total = total + (gradients * some).flatten(first + 1).sum((0, -1))
    return dz, total.unsqueeze(-1)


def _constant(dz_of: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """f(t, z) of an f in which autograd sees no z.

    Raises:
        ValueError: f changes with z all the same, so its divergence is not 0.
    """
    dz = dz_of(z)
    with torch.no_grad():
        elsewhere = dz_of(z + 0.1 * (1 + z.abs()))
    if has_values(dz) and not torch.allclose(dz, elsewhere, rtol=0, atol=0, equal_nan=True):
        raise ValueError(
            "f: it changes with z, but autograd sees no z in it, so its divergence would be taken for 0; expected an f "
            "without torch.no_grad, inference_mode, detach or NumPy, or one with a method with_divergence"
        )
    return dz


def _transformed_trace(
    dz_of: Callable[[Tensor], Tensor], z: Tensor, directions: Tensor, chunk: int, first: int
) -> tuple[Tensor, Tensor]:
    """As `_reverse_trace` within torch.func's transforms, which autograd's own functions do not work in."""
    depends: list[bool] = []

    def watched(z: Tensor) -> Tensor:
        dz = dz_of(z)
        depends.append(dz.requires_grad)  # on z alone: to the transform parameters are constants
        return dz

    dz, pull_back, *_ = torch.func.vjp(watched, z)
    total = torch.zeros(z.shape[:first], dtype=z.dtype, device=z.device)
    if not depends[0]:
        return _constant(dz_of, z), total.unsqueeze(-1)
    for some in directions.split(chunk):
        products = torch.func.vmap(pull_back)(some.expand(len(some), *z.shape))[0] * some
        total = total + products.flatten(first + 1).sum((0, -1))
    return dz, total.unsqueeze(-1)


def _gradients(dz: Tensor, z: Tensor, directions: Tensor, graph: bool) -> Tensor | None:
    """εᵀ (∂f/∂z) for directions ε [K, ...] in z's shape: at once, or one by one where that is not possible.

    None where autograd sees no z in dz.
    """
    if not dz.requires_grad:
        return None
    options: dict[str, Any] = {"retain_graph": True, "create_graph": graph, "allow_unused": True}
    if len(directions) > 1 and not (graph and _has_group_norm(dz, z)):
        try:
            return torch.autograd.grad(dz, z, directions, is_grads_batched=True, **options)[0]
        except RuntimeError:
            pass  # not every backward pass can be mapped over; one that fails by itself raises below
    products = [torch.autograd.grad(dz, z, direction, **options)[0] for direction in directions]
    return None if products[0] is None else torch.stack(products)


def _has_group_norm(dz: Tensor, z: Tensor) -> bool:
    """Whether f uses group normalization, whose backward pass torch (2.13) maps over wrongly if it makes a graph."""
    seen, nodes = {z.grad_fn}, [dz.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        if "GroupNorm" in node.name():
            return True
        seen.add(node)
        nodes.extend(following for following, _ in node.next_functions)
    return False
