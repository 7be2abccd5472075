"""States as selectors and forecasts see them."""

import torch
from torch import Tensor

from dise.integrate.problem.state import State, leaves


def joined(state: State) -> Tensor:
    """A state as selectors see it: a tensor as it is; the tensors of a tuple or dict side by side, in their order.

    They are joined along the last dimension if they agree in all others, else flattened first: [n, F].
    """
    if isinstance(state, Tensor):
        return state
    parts = leaves(state)
    if len({part.shape[:-1] for part in parts}) > 1:
        parts = tuple(part.reshape(len(part), -1) for part in parts)
    return torch.cat(parts, dim=-1)


def channel_means(state: State) -> Tensor:
    """[n, D] means over space of the channels of a state [n, D, ...]; of complex ones first the real parts' means."""
    h = joined(state)
    h = h[:, None] if h.ndim == 1 else h
    if h.is_complex():
        h = torch.cat([h.real, h.imag], dim=1)
    return h.flatten(2).mean(2) if h.ndim > 2 else h
