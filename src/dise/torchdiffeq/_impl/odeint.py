"""torchdiffeq's `SOLVERS` and functions under the name that scripts import them by: `torchdiffeq._impl.odeint`."""

from dise.torchdiffeq import SOLVERS, odeint, odeint_dense, odeint_event

__all__ = ["SOLVERS", "odeint", "odeint_dense", "odeint_event"]
