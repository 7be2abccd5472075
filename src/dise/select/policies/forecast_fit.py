"""Fit of a forecast: ridge regression of the reference's logits on those of a candidate."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dise.integrate.argument_types import checked_arguments
from dise.select.model.logits import class_logits
from dise.select.policies.confidence import confidence

RIDGE_PENALTIES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # λ, in units of the features' variance
MAX_PAIRED_CLASSES = 32  # with more classes, products of two logits are too many: only the squares are features


@dataclass(frozen=True)
class ForecastFit:
    """A linear map from features of a candidate to the reference's logits.

    Attributes:
        weight: [F, C], for the features of `forecast_features`.
        bias: [C].
        leave_one_out: [N, C] prediction for each sample by the map that is fitted to the other samples; NaN for samples
            that the fit left out.
        channels: D, number of channels whose means are features.
    """

    weight: Tensor
    bias: Tensor
    leave_one_out: Tensor
    channels: int = 0


@checked_arguments
@torch.no_grad()
def fit_forecast(
    logits: Tensor, reference: Tensor, means: Tensor | None = None, *, penalties: Sequence[float] = RIDGE_PENALTIES
) -> ForecastFit:
    """Fit the reference's logits to features of a candidate, by weighted ridge regression.

    Samples weigh more the less confident the candidate is: w = 1 / (1 + (gap / 2g)²), with the gap between its two
    largest logits and its 10 % quantile g. Only for such samples can a prediction error change what is accepted.
    Samples with features or logits that are not finite are left out.

    Args:
        logits, reference: [N, C], or [N] or [N, 1], logits of the candidate and of the reference on N ≥ 2 samples.
        means: [N, D] `channel_means` of the candidate's states at t1, as further features.
        penalties: λ to choose from, by the mean squared leave-one-out error.

    Raises:
        ValueError: shapes that differ, or fewer than two samples with finite features and logits.

    Source: Allen, The relationship between variable selection and data augmentation and a method for prediction, 1974
    (all leave-one-out errors from one decomposition).
    """
    _check_samples(logits, reference, means)
    logits, y = class_logits(logits.double()), class_logits(reference.double())
    features = forecast_features(logits, None if means is None else means.double())
    columns = _distinct_columns(features.shape[1], logits.shape[1]).to(logits.device)
    usable = (features.isfinite().all(1) & y.isfinite().all(1)).nonzero().flatten()
    if len(usable) < 2:
        raise ValueError(
            f"logits, reference: expected two or more samples with finite features and logits, got {len(usable)} of "
            f"{len(y)}"
        )
    used = y[usable]
    regression = _Regression.of(features[usable][:, columns], used, _weights(logits[usable]))
    best = min(penalties, key=lambda penalty: float(regression.errors(penalty).square().mean()))
    slope, bias = regression.solution(best)
    predicted = torch.full_like(y, torch.nan)
    predicted[usable] = used - regression.errors(best) / regression.root
    dtype = torch.get_default_dtype()
    return ForecastFit(
        weight=slope.new_zeros(features.shape[1], slope.shape[1]).index_copy(0, columns, slope).to(dtype),
        bias=bias.to(dtype),
        leave_one_out=predicted.to(dtype),
        channels=0 if means is None else means.shape[1],
    )


def forecast_features(logits: Tensor, means: Tensor | None) -> Tensor:
    """[n, F] logits [n, C], their products (squares only, if C > MAX_PAIRED_CLASSES), and means [n, D] if given."""
    if logits.shape[1] > MAX_PAIRED_CLASSES:
        products = logits.square()
    else:  # all C² products: computing each twice is faster than selecting the distinct ones
        products = (logits[:, :, None] * logits[:, None, :]).flatten(1)
    return torch.cat([logits, products] if means is None else [logits, products, means], dim=1)


def logit_margin(logits: Tensor, answer: Tensor) -> Tensor:
    """[n] logit of an answer [n] minus the largest other logit, for logits [n, C]."""
    index = answer[:, None]
    others = logits.scatter(1, index, -torch.inf).amax(1, keepdim=True)
    return (logits.gather(1, index) - others)[:, 0]


@dataclass(frozen=True)
class _Regression:
    """Weighted ridge regression of y [N, C] on x [N, F] for any penalty, from one decomposition."""

    mean: Tensor  # [F] of x
    scale: Tensor  # [F] standard deviation of x
    middle: Tensor  # [C] mean of y
    root: Tensor  # [N, 1] square roots of the weights
    residual: Tensor  # [N, C] weighted y − middle
    u: Tensor
    s: Tensor
    v: Tensor

    @classmethod
    def of(cls, x: Tensor, y: Tensor, w: Tensor) -> "_Regression":
        """The regression with weights w [N], which are 1 on average."""
        root, scale = w.sqrt()[:, None], x.std(0).clamp(min=1e-9)
        mean, middle = (w @ x) / len(x), (w @ y) / len(x)
        u, s, v = torch.linalg.svd(root * (x - mean) / scale, full_matrices=False)
        return cls(mean, scale, middle, root, root * (y - middle), u, s, v)

    def errors(self, penalty: float) -> Tensor:
        """[N, C] weighted leave-one-out errors."""
        number = len(self.u)
        shrinkage = self.s.square() / (self.s.square() + penalty * number)
        leverage = self.u.square() @ shrinkage + self.root[:, 0].square() / number
        fitted = self.u @ (shrinkage[:, None] * (self.u.mT @ self.residual))
        return (self.residual - fitted) / (1 - leverage).clamp(min=1e-9)[:, None]

    def solution(self, penalty: float) -> tuple[Tensor, Tensor]:
        """Slope [F, C] and bias [C]."""
        gain = self.s / (self.s.square() + penalty * len(self.u))
        slope = self.v.mT @ (gain[:, None] * (self.u.mT @ self.residual)) / self.scale[:, None]
        return slope, self.middle - self.mean @ slope


def _check_samples(logits: Tensor, reference: Tensor, means: Tensor | None) -> None:
    if logits.shape != reference.shape or len(logits) < 2:
        raise ValueError(
            f"logits, reference: expected two or more samples of the same shape, got {tuple(logits.shape)} and "
            f"{tuple(reference.shape)}"
        )
    if means is not None and (means.ndim != 2 or len(means) != len(logits)):
        raise ValueError(f"means: expected shape ({len(logits)}, D), got {tuple(means.shape)}")


def _distinct_columns(features: int, classes: int) -> Tensor:
    """Indices of the features without the second copies of products."""
    if classes > MAX_PAIRED_CLASSES:
        return torch.arange(features)
    i, j = torch.triu_indices(classes, classes)
    return torch.cat([torch.arange(classes), classes + classes * i + j, torch.arange(classes + classes**2, features)])


def _weights(logits: Tensor) -> Tensor:
    """[N] weights of the samples, 1 on average; see `fit_forecast`."""
    gap = confidence(logits, "gap")
    near = gap.quantile(0.1).clamp(min=1e-9)
    w = 1 / (1 + (gap / (2 * near)).square())
    return w / w.mean()
