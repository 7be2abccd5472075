"""States as one tensor, and the means of their channels: what selectors and forecasts are given."""

import torch
from torch import Tensor

from dise.integrate.problem.state import State, leaves


def concatenate_state(state: State) -> Tensor:
    """A state as one tensor: a tensor is returned as it is, the tensors of a tuple or dict are concatenated in order.

    They are concatenated along the last dimension if their other dimensions agree; otherwise each is flattened to
    [n, F_i] first.
    """
    if isinstance(state, Tensor):
        return state
    parts = leaves(state)
    if len({part.shape[:-1] for part in parts}) > 1:
        parts = tuple(part.reshape(len(part), -1) for part in parts)
    return torch.cat(parts, dim=-1)


def channel_means(state: State) -> Tensor:
    """[n, D] spatial means of the channels of a state [n, D, ...].

    A complex state has 2·D: first the means of the real parts, then those of the imaginary parts.
    """
    h = concatenate_state(state)
    h = h[:, None] if h.ndim == 1 else h
    if h.is_complex():
        h = torch.cat([h.real, h.imag], dim=1)
    return h.flatten(2).mean(2) if h.ndim > 2 else h
