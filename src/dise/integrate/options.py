"""Solve options: how a solve runs, whatever the initial value problem."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypedDict, cast

import torch

from dise.integrate.backsolve import Backsolve
from dise.integrate.integrator import Integrator
from dise.integrate.value import Value

Gradient = Literal["direct", "checkpoint", "backsolve"] | Backsolve
Compile = bool | Literal["fast"] | Mapping[str, Any]


class SolveKeywords(TypedDict, total=False):
    """The fields of `SolveOptions` as keyword arguments, for annotations: `**options: Unpack[SolveKeywords]`."""

    batched: bool
    drop_finished: bool
    gradient: Gradient
    differentiate_step_sizes: bool
    compile: Compile


@dataclass(frozen=True, kw_only=True)
class SolveOptions(Value):
    """How a solve runs and how its gradients are computed: options that do not depend on the initial value problem.

    They are keyword arguments of `dise.solve`, which explains them, of `dise.NeuralODE` and of `dise.Flow`. A block
    holds them as `block.options`; `dataclasses.replace` makes a changed copy.

    Args:
        batched: False solves the whole state as one system with one step size.
        drop_finished: False evaluates f on all samples in every call, finished ones included.
        gradient: "direct", "checkpoint", "backsolve" or a `dise.Backsolve`.
        differentiate_step_sizes: include the choice of step sizes in gradients.
        compile: True compiles whole steps with `torch.compile`, "fast" also with faster, less exact kernels of dise's
            own; a mapping gives torch.compile's arguments.

    Raises:
        TypeError, ValueError: an option (named in the message) is not as described.
    """

    batched: bool = True
    drop_finished: bool = True
    gradient: Gradient = "direct"
    differentiate_step_sizes: bool = False
    compile: Compile = False

    def __post_init__(self) -> None:
        for name in ("batched", "drop_finished", "differentiate_step_sizes"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name}: expected True or False, got {getattr(self, name)!r}")
        named = isinstance(self.gradient, str) and self.gradient in ("direct", "checkpoint", "backsolve")
        if not named and not isinstance(self.gradient, Backsolve):
            raise ValueError(
                f"gradient: expected 'direct', 'checkpoint', 'backsolve' or a dise.Backsolve, got {self.gradient!r}"
            )
        if not isinstance(self.compile, bool | Mapping) and self.compile != "fast":
            raise TypeError(
                f"compile: expected True, False, 'fast' or a mapping of torch.compile's arguments, got {self.compile!r}"
            )

    def keywords(self) -> SolveKeywords:
        """The options as keyword arguments of `dise.solve`, `dise.NeuralODE` and `dise.Flow`."""
        return cast(SolveKeywords, {field.name: getattr(self, field.name) for field in fields(self)})

    def backsolve(self, integrator: Integrator, *, dense: bool) -> Backsolve | None:
        """The backward solve of a solve with `integrator`; None if no adjoint equation is to be solved.

        Raises:
            ValueError: options that exclude backsolve, or an integrator that cannot solve backwards.
        """
        gradient = Backsolve() if self.gradient == "backsolve" else self.gradient
        if not isinstance(gradient, Backsolve) or not torch.is_grad_enabled():
            return None
        for name, given in {"differentiate_step_sizes": self.differentiate_step_sizes, "dense": dense}.items():
            if given:
                raise ValueError(
                    f"{name}: backsolve keeps no steps to differentiate it by; use another gradient= with it"
                )
        return replace(gradient, integrator=gradient.back(integrator))
