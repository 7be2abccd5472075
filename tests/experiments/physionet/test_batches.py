import pytest
import torch

from dise_experiments.physionet.batches import TestBatches, TrainingBatches, draw, kl_weight


@pytest.fixture
def seven(make_records):
    """Seven stays whose number of observations is their place."""
    return make_records(*(tuple(float(t) for t in range(place + 1)) for place in range(7)))


def batches(records, *, batch_size=3, samples=2, seed=0, epoch=0):
    return TrainingBatches(records, batch_size, samples, seed, epoch)


def who(batch):
    """The stays in a batch, by their number of observations."""
    return torch.bincount(batch.stay).tolist()


# ---- training


@pytest.mark.parametrize(("batch_size", "sizes"), [(3, [3, 3, 1]), (7, [7]), (50, [7]), (1, [1] * 7)])
def test_an_epoch_is_every_stay_once(seven, batch_size, sizes):
    epoch = batches(seven, batch_size=batch_size)
    assert [len(x) for x in epoch] == sizes
    assert len(epoch) == len(sizes)
    assert sorted(number for x in epoch for number in who(x)) == [1, 2, 3, 4, 5, 6, 7]


def test_stays_keep_their_own_observations(seven):
    for x in batches(seven):
        first = 0
        for place, number in enumerate(who(x)):
            rows = slice(int(seven.offsets[number - 1]), int(seven.offsets[number - 1]) + number)
            assert torch.equal(x.values[first : first + number], seven.values[rows])
            assert x.labels[place] == seven.labels[number - 1]
            first += number


def test_batches_depend_on_seed_and_epoch_alone(seven):
    def epoch(seed, epoch):
        torch.manual_seed(seed + 99)  # torch's own generator makes no difference
        return [(who(x), x.noise) for x in batches(seven, seed=seed, epoch=epoch)]

    first, again, next_epoch, other_seed = epoch(0, 0), epoch(0, 0), epoch(0, 1), epoch(1, 0)
    assert [who for who, _ in first] == [who for who, _ in again]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(first, again, strict=True))
    for other in (next_epoch, other_seed):
        assert [who for who, _ in first] != [who for who, _ in other]
        assert not torch.equal(first[0][1], other[0][1])
    # (seed, epoch) is a pair: 0, 1 is not 1, 0
    assert not torch.equal(next_epoch[0][1], other_seed[0][1])


def test_other_measurements_are_left_out_in_each_epoch(make_records):
    stay = make_records(tuple(float(t) for t in range(40)))
    full = stay.mask.float().sum()
    kept = [next(iter(TrainingBatches(stay, 1, 1, 0, epoch, 0.3))) for epoch in (0, 0, 1)]
    assert torch.equal(kept[0].mask, kept[1].mask)
    assert not torch.equal(kept[0].mask, kept[2].mask)
    for x in kept:
        # 5 standard deviations of a binomial share
        assert abs(float(x.mask.sum() / full) - 0.7) < 5 * (0.21 / float(full)) ** 0.5
        assert torch.equal(x.values, stay.values * x.mask)
        assert torch.equal(x.times, stay.times / 48)


def test_every_batch_has_noise_of_its_own(seven):
    noise = [x.noise for x in batches(seven, samples=4)]
    assert [x.shape for x in noise] == [(4, 3, 20), (4, 3, 20), (4, 1, 20)]
    assert not torch.equal(noise[0], noise[1])


def test_noise_is_standard_normal():
    noise = draw(100, 50, torch.Generator().manual_seed(0))
    assert noise.shape == (100, 50, 20)
    assert noise.mean().item() == pytest.approx(0, abs=0.02)
    assert noise.std().item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("epoch", [0, 9, 10, 11, 12, 40, 100])
def test_the_kl_terms_weight_is_the_published_one(seven, epoch):
    """Its code: 0 while fewer than 10 epochs are over, then 1 − 0.99^(epochs − 10)."""
    published = 0.0 if epoch < 10 else 1 - 0.99 ** (epoch - 10)
    assert kl_weight(epoch) == pytest.approx(published)
    assert {x.kl_weight for x in batches(seven, epoch=epoch)} == {kl_weight(epoch)}


# ---- tests


@pytest.mark.parametrize(("batch_size", "sizes"), [(3, [3, 3, 1]), (7, [7]), (60, [7])])
def test_test_batches_are_the_records_in_their_order(seven, batch_size, sizes):
    found = list(TestBatches(seven, batch_size))
    assert [len(x) for x, _ in found] == sizes
    assert len(TestBatches(seven, batch_size)) == len(sizes)
    assert [number for x, _ in found for number in who(x)] == [1, 2, 3, 4, 5, 6, 7]
    for x, labels in found:
        assert torch.equal(x.labels, labels)
        assert len(x.noise) == 0
    assert torch.cat([labels for _, labels in found]).tolist() == seven.labels.tolist()
