import pytest
import torch
from torch.testing import assert_close

from dise_experiments.physionet.stays import HORIZON, LEAD, STRIDES, Stays


def walks(times):
    """The published encoder's steps backwards through one record's times (in units of 48 h), one at a time:
    (start, end, index of the observation at the end or −1)."""
    steps, start = [], times[-1] + LEAD
    for index in reversed(range(len(times))):
        gap = start - times[index]
        points = 2 if gap < 1 / STRIDES else max(2, int(gap * STRIDES + 1e-4))
        grid = torch.linspace(start, times[index], points, dtype=torch.float64).tolist()
        inner = [(grid[i], grid[i + 1], -1) for i in range(points - 2)]
        steps += [*inner, (grid[-2], grid[-1], index)]
        start = times[index]
    return steps


SOME = ((0.0, 0.5, 7.25, 30.0), (0.0,), (0.0, 0.1, 0.2, 0.3, 0.4, 47.5), (0.0, 48.0), (0.0, 1.0, 2.0, 3.0))


@pytest.mark.parametrize("chosen", [SOME, ((0.0,),), ((0.0,), (0.0,)), SOME[::-1], ((0.0, 12.0),) * 3])
def test_every_stay_walks_as_the_published_encoder_does(make_records, chosen):
    walk = Stays.of(make_records(*chosen)).walk
    first = 0
    for b, record in enumerate(chosen):
        expected = walks([t / HORIZON for t in record])
        place = int(walk.place[b])
        ends = torch.tensor(walk.sizes).cumsum(0).tolist()
        rows = [end - size + place for end, size in zip(ends, walk.sizes, strict=True) if place < size]
        assert_close(walk.t[rows].double(), torch.tensor([t for t, _, _ in expected]).double(), atol=1e-6, rtol=0)
        assert_close(walk.t_next[rows].double(), torch.tensor([t for _, t, _ in expected]).double(), atol=1e-6, rtol=0)
        assert walk.row[rows].tolist() == [first + i if i >= 0 else -1 for _, _, i in expected]
        first += len(record)


def test_walks_are_packed(records):
    walk = Stays.of(records).walk
    assert sum(walk.sizes) == len(walk.t) == len(walk.t_next) == len(walk.row)
    assert list(walk.sizes) == sorted(walk.sizes, reverse=True)
    assert walk.sizes[0] == len(SOME)
    assert sorted(walk.place.tolist()) == list(range(len(SOME)))


def test_an_observation_is_reached_at_its_very_time(records):
    stays = Stays.of(records)
    reached = stays.walk.row >= 0
    assert torch.equal(stays.walk.t_next[reached], stays.times[stays.walk.row[reached]])
    assert sorted(stays.walk.row[reached].tolist()) == list(range(len(stays.times)))


def test_fields(records):
    stays = Stays.of(records, kl_weight=0.25)
    assert len(stays) == 5
    assert_close(stays.times * HORIZON, records.times)
    assert_close(stays.end * HORIZON, torch.tensor([record[-1] for record in SOME]))
    assert stays.stay.tolist() == [b for b, record in enumerate(SOME) for _ in record]
    assert stays.place.tolist() == [i for record in SOME for i in range(len(record))]
    assert torch.equal(stays.mask, records.mask.float())
    assert (stays.labels.dtype, stays.labels.tolist()) == (torch.float32, [0, 1, 0, 1, 0])
    assert stays.kl_weight == 0.25
    assert len(stays.noise) == 0


def test_padded_times(records):
    times, mask = Stays.of(records).padded_times()
    assert mask.tolist() == [[i < len(record) for i in range(6)] for record in SOME]
    for row, record in zip(times, SOME, strict=True):
        assert_close(row[: len(record)] * HORIZON, torch.tensor(record))
    assert (times[~mask] == 0).all()


def test_to_moves_every_tensor(records):
    stays = Stays.of(records, noise=torch.ones(2, 5, 20)).to("meta")
    for value in (stays, stays.walk):
        tensors = [x for x in vars(value).values() if isinstance(x, torch.Tensor)]
        assert len(tensors) >= 4
        assert all(x.device.type == "meta" for x in tensors)
