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
    return by_channel(concatenate_state(state)).mean(2)


def by_channel(x: Tensor) -> Tensor:
    """[n, D, S] values of D channels at S places, for a tensor [n, D, ...]; [n] has one channel, [n, D] one place.

    A complex tensor has 2·D channels: first the real parts, then the imaginary parts.
    """
    if x.is_complex():
        return torch.cat([by_channel(x.real), by_channel(x.imag)], dim=1)
    return x.reshape(len(x), 1, 1) if x.ndim == 1 else x[..., None] if x.ndim == 2 else x.flatten(2)
