"""`Backsolve`: what users pass to `solve` for gradients by the adjoint equation."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from inspect import unwrap
from typing import Any

from torch import Tensor, nn

from dise.integrate.exact import inner
from dise.integrate.integrator import Integrator, check_integrator
from dise.integrate.integrators import FixedStep
from dise.integrate.multistep.grids import TimeGrid


@dataclass(frozen=True, eq=False, kw_only=True)
class Backsolve:
    """`solve(..., gradient=Backsolve(...))`: what the backward solve differentiates, and how it integrates.

    Args:
        params: tensors that f uses and that get gradients, beside `args` and `sample_args`; no others do. Default:
            f's parameters, if f (or what it wraps by `functools.wraps`) is an `nn.Module`, and all tensors on which the
            first value of f depends. If later values depend on others, the backward pass raises an error.
        integrator: for the backward solve; default: that of the forward solve. The steps of a fixed-step method are
            divided among the stretches between save points, at least one each.

    Raises:
        TypeError: not tensors, or not an integrator.
    """

    params: Iterable[Tensor] | None = None
    integrator: Integrator | None = None

    def __post_init__(self) -> None:
        if self.params is not None:
            if not isinstance(self.params, Iterable):
                raise TypeError(f"params: expected tensors, got {type(self.params).__name__}")
            params = (self.params,) if isinstance(self.params, Tensor) else tuple(self.params)
            for i, param in enumerate(params):
                if not isinstance(param, Tensor):
                    raise TypeError(f"params[{i}]: expected a tensor, got {type(param).__name__}")
            object.__setattr__(self, "params", params)
        check_integrator(self.integrator, optional=True)

    def tensors(self, f: Callable[..., Any], used: Iterable[Tensor]) -> tuple[Tensor, ...]:
        """The tensors that f uses beside its arguments; `used` are those that it was seen to use."""
        if self.params is not None:
            return tuple(self.params)
        module = unwrap(f)
        return (*(module.parameters() if isinstance(module, nn.Module) else ()), *used)

    def back(self, integrator: Integrator) -> Integrator:
        """The integrator of the backward solve, after a forward solve by `integrator`.

        Raises:
            ValueError: an integrator that chooses; it can choose for f, not for the adjoint equation. Or a grid or
                table, which is made for the forward direction.
        """
        chosen = integrator if self.integrator is None else self.integrator
        method = inner(chosen)
        if method.chooses:
            raise ValueError(
                f"gradient: backsolve integrates with one integrator, but {type(method).__name__} chooses one per "
                "sample; name one, e.g. gradient=dise.Backsolve(integrator=dise.Dopri5())"
            )
        if method.one_way or (isinstance(method, FixedStep) and isinstance(method.steps, TimeGrid)):
            raise ValueError(
                f"gradient: backsolve cannot use {chosen}, which is made for the forward direction; name another "
                "integrator, e.g. gradient=dise.Backsolve(integrator=dise.Dopri5()), or use gradient='checkpoint'"
            )
        return chosen
