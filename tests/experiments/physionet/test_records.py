import dataclasses

import pytest
import torch
from torch.testing import assert_close

from dise_experiments.physionet.records import VARIABLES, Records, Scaling

HEIGHT, WEIGHT, HR, TEMP = (VARIABLES.index(name) for name in ("Height", "Weight", "HR", "Temp"))


def made(*stays):
    """Records of stays, each a list of (hour, {variable: value}); ids 100, 101, …; the second, fourth, … died."""
    rows = [row for stay in stays for row in stay]
    values = torch.zeros(len(rows), len(VARIABLES))
    mask = torch.zeros(len(rows), len(VARIABLES), dtype=torch.bool)
    for row, (_, measured) in enumerate(rows):
        for variable, value in measured.items():
            values[row, variable], mask[row, variable] = value, True
    return Records(
        ids=torch.arange(len(stays)) + 100,
        times=torch.tensor([time for time, _ in rows]),
        values=values,
        mask=mask,
        counts=torch.tensor([len(stay) for stay in stays], dtype=torch.int64),
        labels=torch.arange(len(stays)) % 2,
    )


def numbered(*counts):
    """Stays of so many rows; the number of a row is in its HR."""
    starts = [sum(counts[:i]) for i in range(len(counts))]
    return made(*([(i / 2, {HR: start + i}) for i in range(n)] for start, n in zip(starts, counts, strict=True)))


def rows(records):
    return records.values[:, HR].int().tolist()


# ---- variables


def test_variables_are_the_41_of_the_published_code_in_its_order():
    assert len(VARIABLES) == len(set(VARIABLES)) == 41
    assert VARIABLES[:5] == ("Age", "Gender", "Height", "ICUType", "Weight")
    assert [VARIABLES[i] for i in (15, 19, 23, 24, 36, 40)] == ["GCS", "HR", "MAP", "MechVent", "Temp", "WBC"]


# ---- records


def test_length_and_offsets():
    records = numbered(2, 1, 3)
    assert len(records) == 3
    assert records.offsets.tolist() == [0, 2, 3]


def test_index_by_tensor_gives_the_stays_in_that_order():
    records = numbered(2, 1, 3)
    chosen = records[torch.tensor([2, 0])]
    assert chosen.ids.tolist() == [102, 100]
    assert chosen.labels.tolist() == [0, 0]
    assert chosen.counts.tolist() == [3, 2]
    assert chosen.offsets.tolist() == [0, 3]
    assert rows(chosen) == [3, 4, 5, 0, 1]
    assert chosen.times.tolist() == [0, 0.5, 1, 0, 0.5]
    assert torch.equal(chosen.mask, records.mask[[3, 4, 5, 0, 1]])


def test_index_may_repeat_a_stay_and_count_from_the_end():
    assert rows(numbered(2, 1, 3)[torch.tensor([-2, 1, 0])]) == [2, 2, 0, 1]


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (slice(1, None), [2, 3, 4, 5]),
        (slice(0, 0), []),
        (slice(None, None, 2), [0, 1, 3, 4, 5]),
        (torch.tensor([True, False, True]), [0, 1, 3, 4, 5]),
        (torch.tensor([], dtype=torch.int64), []),
    ],
)
def test_index_by_slice_and_mask(index, expected):
    assert rows(numbered(2, 1, 3)[index]) == expected


def test_index_agrees_with_taking_stay_by_stay():
    generator = torch.Generator().manual_seed(0)
    records = numbered(*torch.randint(1, 9, (50,), generator=generator).tolist())
    order = torch.randperm(50, generator=generator)[:30]
    starts = records.offsets.tolist()
    expected = [starts[i] + j for i in order.tolist() for j in range(int(records.counts[i]))]
    assert rows(records[order]) == expected


@pytest.mark.parametrize("index", [1, [0, 1], "all"])
def test_index_of_another_type(index):
    with pytest.raises(TypeError, match=f"index: expected a slice or a tensor, got {type(index).__name__}"):
        numbered(2, 1)[index]


def test_index_out_of_range():
    with pytest.raises(IndexError):
        numbered(2, 1)[torch.tensor([2])]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids": torch.arange(2, dtype=torch.int32)}, r"ids: expected torch.int64 \[2\], got torch.int32"),
        ({"times": torch.zeros(3).double()}, r"times: expected torch.float32 \[3\], got torch.float64"),
        ({"values": torch.zeros(3, 40)}, r"values: expected torch.float32 \[3, 41\], got torch.float32 \[3, 40\]"),
        ({"mask": torch.zeros(3, 41)}, r"mask: expected torch.bool \[3, 41\], got torch.float32"),
        ({"counts": torch.tensor([2, 1, 0])}, r"counts: expected torch.int64 \[2\], got torch.int64 \[3\]"),
        ({"counts": torch.tensor([3, 0])}, r"counts: expected 1 or more rows each, 3 in all, got 0, 3, 3 in all"),
        ({"counts": torch.tensor([2, 2])}, r"counts: .*, 3 in all, got 2, 4 in all"),
        ({"times": torch.tensor([0.0, 0.0, 0.0])}, "times: expected hours that increase within each stay"),
        ({"times": torch.tensor([1.0, 0.5, 0.0])}, "times: expected hours that increase within each stay"),
        ({"mask": torch.zeros(3, 41, dtype=torch.bool)}, "values: expected 0 where mask is False"),
        ({"labels": torch.tensor([0, -1])}, "labels: expected 0 or 1, got -1, 0"),
        ({"labels": torch.zeros(1, dtype=torch.int64)}, r"labels: expected torch.int64 \[2\], got torch.int64 \[1\]"),
    ],
)
def test_records_reject_what_they_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(numbered(2, 1), **changes)


def test_times_may_start_over_with_each_stay_and_need_not_start_at_zero():
    assert len(made([(5.0, {HR: 60}), (6.0, {HR: 60})], [(1.0, {HR: 60})])) == 2


def test_stays_without_a_time_series_are_counted():
    description = {0: 70, HEIGHT: 170, WEIGHT: 80}
    records = made(
        [(0.0, description)],
        [(0.0, description), (1.0, {HR: 80})],
        [(0.0, description | {HR: 80})],
        [(0.0, {})],
        [(0.0, description), (1.0, {WEIGHT: 81})],
    )
    assert records.has_series.tolist() == [False, True, True, False, True]
    assert records.without_series == 2
    assert records[:0].without_series == 0


# ---- scaling


def test_scaling_is_fitted_to_measured_values_alone():
    records = made([(0.0, {HR: 60, TEMP: -17.8}), (1.0, {HR: 90})], [(0.0, {TEMP: 37.0})])
    scaling = Scaling.fit(records)
    assert scaling.minimum[[HR, TEMP]].tolist() == pytest.approx([60, -17.8])
    assert scaling.maximum[[HR, TEMP]].tolist() == [90, 37]
    never = torch.ones(41, dtype=torch.bool)
    never[[HR, TEMP]] = False
    assert (scaling.minimum[never] == 0).all()
    assert (scaling.maximum[never] == 1).all()


def test_scaling_is_the_published_one():
    records = made([(0.0, {HR: 60}), (1.0, {HR: 90, TEMP: 30})], [(0.0, {TEMP: 40})])
    scaled = Scaling.fit(records)(records)
    # (90 - 60) / 90 and (40 - 30) / 40, not divided by the range
    assert_close(scaled.values[:, HR], torch.tensor([0, 1 / 3, 0]))
    assert_close(scaled.values[:, TEMP], torch.tensor([0, 0, 0.25]))
    for name in ("ids", "times", "mask", "counts", "labels"):
        assert torch.equal(getattr(scaled, name), getattr(records, name))


def test_scaling_leaves_what_was_not_measured_at_zero_on_other_records_too():
    scaling = Scaling.fit(made([(0.0, {HR: 60}), (1.0, {HR: 90})]))
    other = scaling(made([(0.0, {HR: 150, TEMP: 37}), (2.0, {})]))
    assert_close(other.values[:, HR], torch.tensor([1.0, 0.0]))  # beyond what it was fitted to
    assert_close(other.values[:, TEMP], torch.tensor([37.0, 0.0]))  # never seen: as it is


def test_a_greatest_value_of_zero_counts_as_one():
    records = made([(0.0, {HR: 0}), (1.0, {HR: 0})], [(0.0, {TEMP: -4}), (1.0, {TEMP: 0})])
    scaled = Scaling.fit(records)(records)
    assert scaled.values[:, HR].tolist() == [0, 0, 0, 0]
    assert scaled.values[:, TEMP].tolist() == [0, 0, 0, 4]


def test_scaling_needs_records_and_numbers_for_each_variable():
    with pytest.raises(ValueError, match="records: expected one or more to fit a scaling to, got 0"):
        Scaling.fit(numbered(1)[:0])
    with pytest.raises(ValueError, match=r"minimum: expected torch.float32 \[41\], got torch.float32 \[3\]"):
        Scaling(torch.zeros(3), torch.ones(41))
    with pytest.raises(ValueError, match=r"maximum: expected torch.float32 \[41\], got torch.float64 \[41\]"):
        Scaling(torch.zeros(41), torch.ones(41).double())
