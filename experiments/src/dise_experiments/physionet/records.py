"""Stays in intensive care as tensors, and the scaling of their values."""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

# The variables of a record beside its RecordID, in the order of Rubanova et al., "Latent ODEs for Irregularly-Sampled
# Time Series", 2019. The first five describe the patient at admission.
VARIABLES = (
    "Age", "Gender", "Height", "ICUType", "Weight",
    "Albumin", "ALP", "ALT", "AST", "Bilirubin", "BUN", "Cholesterol", "Creatinine", "DiasABP", "FiO2", "GCS",
    "Glucose", "HCO3", "HCT", "HR", "K", "Lactate", "Mg", "MAP", "MechVent", "Na", "NIDiasABP", "NIMAP", "NISysABP",
    "PaCO2", "PaO2", "pH", "Platelets", "RespRate", "SaO2", "SysABP", "Temp", "TroponinI", "TroponinT", "Urine", "WBC",
)  # fmt: skip
_DESCRIPTORS = 5


@dataclass(frozen=True, eq=False)
class Records:
    """N stays with M rows of measurements, stay by stay; a row holds all measurements of one time.

    Attributes:
        ids: int64 [N], the published RecordIDs.
        times: float32 [M], hours since admission, increasing within each stay.
        values: float32 [M, 41], in the order of `VARIABLES`, in the published units; 0 where not measured.
        mask: bool [M, 41], True where measured.
        counts: int64 [N], number of rows of each stay, at least 1; they sum to M.
        labels: int64 [N], 1 for a death in hospital, else 0.

    Errors: `ValueError` if a field violates this.
    """

    ids: Tensor
    times: Tensor
    values: Tensor
    mask: Tensor
    counts: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        stays, rows = (len(self.ids),), (len(self.times),)
        _expect("ids", self.ids, torch.int64, stays)
        _expect("times", self.times, torch.float32, rows)
        _expect("values", self.values, torch.float32, (*rows, len(VARIABLES)))
        _expect("mask", self.mask, torch.bool, (*rows, len(VARIABLES)))
        _expect("counts", self.counts, torch.int64, stays)
        _expect("labels", self.labels, torch.int64, stays)
        if (self.counts < 1).any() or self.counts.sum() != len(self.times):
            found = f"{_some(self.counts)}, {int(self.counts.sum())} in all"
            raise ValueError(f"counts: expected 1 or more rows each, {len(self.times)} in all, got {found}")
        if not self._times_rise():
            raise ValueError("times: expected hours that increase within each stay, got some that do not")
        if (self.values.ne(0) & ~self.mask).any():
            raise ValueError("values: expected 0 where mask is False, got other values")
        if ((self.labels != 0) & (self.labels != 1)).any():
            raise ValueError(f"labels: expected 0 or 1, got {_some(self.labels)}")

    def __len__(self) -> int:
        return len(self.ids)

    def without(self, dropped: Tensor) -> "Records":
        """The records without the measurements where `dropped`, bool [M, 41], is True."""
        mask = self.mask & ~dropped
        return replace(self, mask=mask, values=self.values.masked_fill(~mask, 0.0))

    def __getitem__(self, index: slice | Tensor) -> "Records":
        """The stays at `index`, in that order: a slice, or an int64 or bool tensor.

        Errors: `TypeError` for another type; `IndexError` for an index out of range.
        """
        if not isinstance(index, slice | Tensor):
            raise TypeError(f"index: expected a slice or a tensor, got {type(index).__name__}")
        stays = torch.arange(len(self))[index]
        counts = self.counts[stays]
        first = counts.cumsum(0) - counts
        rows = torch.arange(int(counts.sum())) + (self.offsets[stays] - first).repeat_interleave(counts)
        return Records(
            self.ids[stays], self.times[rows], self.values[rows], self.mask[rows], counts, self.labels[stays]
        )

    @property
    def offsets(self) -> Tensor:
        """int64 [N], index of each stay's first row."""
        return self.counts.cumsum(0) - self.counts

    @property
    def has_series(self) -> Tensor:
        """bool [N], False for a stay with no measurement but age, gender, height, ICU type and weight."""
        return (self.counts > 1) | self.mask[self.offsets, _DESCRIPTORS:].any(1)

    @property
    def without_series(self) -> int:
        """The number of stays without a time series: one row, at admission, that only describes the patient."""
        return int((~self.has_series).sum())

    def _times_rise(self) -> bool:
        rises = torch.ones_like(self.times, dtype=torch.bool)
        rises[1:] = self.times.diff() > 0
        rises[self.offsets] = True  # a stay's first row follows another stay's last
        return bool(rises.all())


@dataclass(frozen=True, eq=False)
class Scaling:
    """(x - minimum) / maximum of each variable, as in the published latent-ODE code; a maximum of 0 counts as 1.

    The divisor is not maximum - minimum, so scaled values are in [0, 1] only for a minimum of 0; published results use
    this scaling.

    Attributes:
        minimum: float32 [41], in the order of `VARIABLES`.
        maximum: float32 [41].

    Errors: `ValueError` for another dtype or shape.
    """

    minimum: Tensor
    maximum: Tensor

    def __post_init__(self) -> None:
        for name, tensor in (("minimum", self.minimum), ("maximum", self.maximum)):
            _expect(name, tensor, torch.float32, (len(VARIABLES),))

    @classmethod
    def fit(cls, records: Records) -> Self:
        """The scaling by the smallest and largest measured values; 0 and 1 for a variable without measurements.

        Fit it on the training part alone and scale every part with it. The published code includes the test part's
        extremes, which leaks information on the test records into the model.

        Errors: `ValueError` if there are no records.
        """
        if len(records) == 0:
            raise ValueError("records: expected one or more to fit a scaling to, got 0")
        measured = records.mask.any(0)
        least = records.values.masked_fill(~records.mask, torch.inf).amin(0)
        greatest = records.values.masked_fill(~records.mask, -torch.inf).amax(0)
        return cls(least.where(measured, 0.0), greatest.where(measured, 1.0))

    def __call__(self, records: Records) -> Records:
        """The records with scaled values; values that were not measured stay 0."""
        scaled = (records.values - self.minimum) / self.maximum.where(self.maximum != 0, 1.0)
        return replace(records, values=scaled.masked_fill(~records.mask, 0.0))


def _expect(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if tensor.dtype != dtype or tensor.shape != shape:
        raise ValueError(f"{name}: expected {dtype} {list(shape)}, got {tensor.dtype} {list(tensor.shape)}")


def _some(tensor: Tensor) -> str:
    """The distinct values, at most eight of them."""
    values = tensor.unique().tolist()
    return ", ".join(map(str, values[:8])) + (", …" if len(values) > 8 else "")
