"""Divergence of vector fields, and the field of points together with their log-density."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def divergence(f: Callable[[Tensor, Tensor], Tensor], t: Tensor, z: Tensor) -> Tensor:
    """div f(t, z) = Σ_i ∂f_i/∂z_i at every point, exactly: one evaluation of f and D backward passes.

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
    return field_and_divergence(f, t, z)[1]


def field_and_divergence(f: Callable[[Tensor, Tensor], Tensor], t: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """f(t, z) [..., D] and its divergence [..., 1]; arguments as in `divergence`."""
    differentiable = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.enable_grad():
        # autograd accepts no inference tensors, but it accepts their clones
        t, z = (x.clone() if x.is_inference() else x for x in (t, z))
        z = z if z.requires_grad else z.detach().requires_grad_()
        dz = f(t, z)
        if dz.shape != z.shape:
            raise ValueError(f"f: expected dz/dt of shape {list(z.shape)} like z, got {list(dz.shape)}")
        trace = torch.zeros_like(dz[..., :1])
        if not dz.requires_grad:  # f is constant
            return dz, trace
        for i in range(z.shape[-1]):
            # points are independent, so the gradient of the sum over points is the gradient of each point
            (gradient,) = torch.autograd.grad(
                dz[..., i].sum(), z, retain_graph=True, create_graph=differentiable, materialize_grads=True
            )
            trace = trace + gradient[..., i : i + 1]
    return (dz, trace) if differentiable else (dz.detach(), trace.detach())


class AugmentedField(nn.Module):
    """The vector field of points and their log-density, made from the field f(t, z) of the points.

    Args:
        f: as in `Flow`.
    """

    def __init__(self, f: nn.Module) -> None:
        super().__init__()
        self.f = f

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """(dz/dt [n, ..., D], d log p/dt = −div f [n, ..., 1]) at (z, log p), independent of log p."""
        with_divergence = getattr(self.f, "with_divergence", None)
        z = state[0]
        dz, div = field_and_divergence(self.f, t, z) if with_divergence is None else with_divergence(t, z)
        return dz, -div
