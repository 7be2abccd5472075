import pytest
import torch

from dise_experiments.circles.data import TARGETS
from dise_experiments.circles.points import FreshBatches, draw, sets
from dise_experiments.circles.presets import Preset

PRESET = Preset(epochs=2, iterations=3, batch_size=50, selection_sets=4, test_sets=1)


def batches(*, seed=0, epoch=0, **changes):
    return list(FreshBatches(PRESET.model_copy(update=changes), seed, epoch))


def same(x, y):
    return x.shape == y.shape and torch.equal(x, y)


def points(*tensors):
    """The points in tensors [..., 2], as they are to the last bit."""
    return {tuple(point) for x in tensors for point in x.reshape(-1, 2).tolist()}


# ---- streams


@pytest.mark.parametrize("target", TARGETS)
def test_points_depend_on_the_arguments_alone(target):
    torch.manual_seed(1)
    x, state = draw(target, 100, "here"), torch.random.get_rng_state()
    assert same(x, draw(target, 100, "here"))
    assert x.shape == (100, 2)
    assert torch.equal(state, torch.random.get_rng_state())


def test_the_target_is_the_one_that_is_named():
    """Moons lie on half circles of radius 0.8 around (0.4, 0.2) moved by their centre; a checkerboard in a square."""
    assert draw("checkerboard", 1000, "here").abs().max() <= 1
    assert (draw("circles", 1000, "here").norm(dim=1) > 0.75).sum() == 500
    assert draw("moons", 1000, "here").norm(dim=1).min() < 0.2 < draw("circles", 1000, "here").norm(dim=1).min()


def test_every_stream_has_points_of_its_own():
    streams = [
        ("train", 0, 0, 0),
        ("train", 1, 11, 1),
        ("train", 11, 1, 1),
        ("train", 1, 1, 11),
        ("test",),
        ("figure",),
    ]
    drawn = [points(draw("circles", 200, *stream)) for stream in streams]
    assert len(set.union(*drawn)) == sum(map(len, drawn)) == 200 * len(streams)


# ---- training


def test_an_epoch_is_its_iterations_of_one_system_each():
    epoch = FreshBatches(PRESET, 0, 0)
    assert len(epoch) == 3
    assert [tuple(x.shape) for x in epoch] == [(1, 50, 2)] * 3
    assert {x.dtype for x in epoch} == {torch.float32}


def test_batches_are_the_same_however_often_they_are_asked_for():
    epoch = FreshBatches(PRESET, 3, 1)
    assert all(map(same, list(epoch), list(epoch)))
    # a resumed run asks for a later epoch first
    assert all(map(same, list(epoch), batches(seed=3, epoch=1)))


@pytest.mark.parametrize("other", [{"seed": 1}, {"epoch": 1}, {"seed": 1, "epoch": 1}])
def test_every_batch_is_fresh(other):
    first, second = batches(), batches(**other)
    assert len(points(*first, *second)) == 2 * 3 * 50


def test_more_iterations_have_the_same_first_batches():
    assert all(map(same, batches(), batches(iterations=5)))
    assert len(batches(iterations=5)) == 5


def test_batches_are_of_the_presets_target():
    for x in batches(target="checkerboard", batch_size=500):
        assert x.abs().max() <= 1
    for x in batches(batch_size=500):
        assert x.abs().max() > 1


def test_training_goes_through_all_of_the_distribution():
    radius = torch.cat(batches(iterations=100), 1)[0].norm(dim=1)
    assert (radius > 0.75).sum() == 2500
    assert radius[radius > 0.75].mean().item() == pytest.approx(1 + 0.06**2 / 2, abs=0.005)  # Rice's mean


# ---- the other parts


@pytest.mark.parametrize("target", TARGETS)
def test_sets_are_of_32_points(target):
    x = sets(target, 5, "test")
    assert x.shape == (5, 32, 2)
    assert same(x, sets(target, 5, "test"))
    assert same(x.reshape(-1, 2), draw(target, 160, "test"))


def test_no_point_is_in_two_parts():
    """Nothing is tested on points that something was fitted to."""
    parts = [sets("circles", 64, part) for part in ("monitored", "selection", "test")]
    training = [x for seed in (0, 1) for epoch in (0, 1) for x in batches(seed=seed, epoch=epoch, batch_size=512)]
    total = sum(x.numel() // 2 for x in (*parts, *training))
    assert len(points(*parts, *training)) == total == 3 * 64 * 32 + 4 * 3 * 512
