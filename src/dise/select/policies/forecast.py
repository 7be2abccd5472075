"""Forecasts of the reference's logits from those of a candidate, as the acceptance rule of a cascade."""

from contextlib import nullcontext
from copy import copy
from typing import Self

import torch
from torch import Tensor, nn

from dise.integrate.argument_types import checked_arguments
from dise.integrate.problem.state import State
from dise.select.model.logits import class_logits
from dise.select.model.states import channel_means
from dise.select.policies.forecast_fit import ForecastFit, fit_forecast, forecast_features, logit_margin


@checked_arguments
class Forecast(nn.Module):
    """Acceptance rule for a `Cascade` of a classifier: accept if the reference probably gives the same answer.

    A coarse integrator errs in the same way on many samples: it favours certain classes. So the reference's logits can
    be predicted from the candidate's by a linear map, fitted without labels (`fit_forecast`). Its features are the
    logits, their products in pairs, and the means of the state's channels. The score is the margin of the candidate's
    own answer in the predicted logits; where it is negative, the reference probably answers otherwise. `Confidence`
    measures how sure the candidate is; `Forecast` measures whether it should be.

    The rule uses the model's head without owning it. Its weights are part of the block that its cascade is assigned to.

    Args:
        head: h(t1) [n, ...] → logits [n, C]; or one logit per sample, [n] or [n, 1], of a yes-or-no question, which is
            C = 2. It is evaluated once more for each answer that is judged.
        threshold: smallest score to accept, in the unit of the logits.
        classes: C.
        channels: D of states [n, D, ...] whose channel means are features; 0: logits alone are.

    Raises:
        ValueError: fewer than two classes, a negative number of channels, or a threshold that is NaN.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, head: nn.Module, threshold: float, *, classes: int, channels: int = 0) -> None:
        super().__init__()
        if classes < 2:
            raise ValueError(f"classes: expected at least 2, got {classes!r}")
        if channels < 0:
            raise ValueError(f"channels: expected at least 0, got {channels!r}")
        self._head = (head,)  # a tuple, so that the head is not registered as a submodule a second time
        self.threshold = _check_threshold(threshold)
        self.channels = channels
        number = forecast_features(torch.zeros(1, classes), torch.zeros(1, channels)).shape[1]
        # before a fit, predict the candidate's own logits
        self.register_buffer("weight", torch.eye(number, classes))
        self.register_buffer("bias", torch.zeros(classes))

    @classmethod
    @checked_arguments
    def fit(
        cls, head: nn.Module, logits: Tensor, reference: Tensor, *, means: Tensor | None = None, threshold: float = 0.0
    ) -> Self:
        """Fit the rule of one candidate.

        Args:
            head: the model's head.
            logits: [N, C], or [N] or [N, 1], of the model with the candidate; the samples may be those that the model
                was trained on.
            reference: the same with the reference integrator.
            means: [N, D] `channel_means` of the candidate's states at t1, as further features.
            threshold: see the class.

        Raises:
            ValueError: shapes that differ, or fewer than two samples.
        """
        return cls.from_fit(head, fit_forecast(logits, reference, means), threshold)

    @classmethod
    @checked_arguments
    def from_fit(cls, head: nn.Module, fit: ForecastFit, threshold: float) -> Self:
        """The rule of an existing fit."""
        rule = cls(head, threshold, classes=len(fit.bias), channels=fit.channels)
        rule.weight.copy_(fit.weight)
        rule.bias.copy_(fit.bias)
        return rule

    @property
    def head(self) -> nn.Module:
        """The model's head."""
        return self._head[0]

    def score(self, h: State) -> Tensor:
        """[n] margin of the candidate's answer in the predicted logits of the reference."""
        # a head may change its input in place, so compute the means first
        means = channel_means(h) if self.channels else None
        logits = class_logits(self._head[0](h)).to(self.bias.dtype)
        return logit_margin(self._predict(logits, means), logits.argmax(1))

    def _predict(self, logits: Tensor, means: Tensor | None) -> Tensor:
        """[n, C] predicted logits of the reference, outside of autocast: half precision is too coarse for products."""
        weight, bias = self.weight, self.bias  # torch's `__getattr__` finds them
        means = means if means is None else means.to(logits.dtype)
        device = weight.device.type
        # entering autocast is slow, so leave it only where it is enabled
        precise = torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()
        with precise:
            return torch.addmm(bias, forecast_features(logits, means), weight)

    def forward(self, h: State) -> Tensor:
        """[n] bool, whether to accept states [n, ...] at t1."""
        return self.score(h) >= self.threshold

    def with_threshold(self, threshold: float) -> Self:
        """A copy of the rule with another threshold; the two share their weights.

        Raises:
            ValueError: a threshold that is NaN.
        """
        other = copy(self)
        other.threshold = _check_threshold(threshold)
        return other

    def extra_repr(self) -> str:
        """The arguments in the printed form of the rule."""
        return f"threshold={self.threshold:g}, classes={len(self.bias)}, channels={self.channels}"


def _check_threshold(threshold: float) -> float:
    if threshold != threshold:
        raise ValueError(f"threshold: expected a number, got {threshold!r}")
    return threshold
