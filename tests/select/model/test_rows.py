"""An f that mixes the samples of a batch is noticed before anything is learnt or certified."""

import pytest
import torch
from torch import nn

from dise import RK4, Euler, NeuralODE, calibrate, make_dynamic, run_candidates

X = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
MIXES = "so it mixes samples .* or draws random numbers. .*model.eval.*drop_finished=False"


class BatchMean(nn.Module):
    def __init__(self, share=1.0):
        super().__init__()
        self.share = share

    def forward(self, t, y):
        return self.share * y.mean(0) - y


class Normed(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, t, y):
        return torch.tanh(self.layer(y))


class Enclosed(nn.Module):
    """A tensor with a row per sample, which is not in sample_args."""

    def forward(self, t, y):
        return y * torch.ones(100, 1)


def classifier(f, **options):
    return nn.Sequential(NeuralODE(f, RK4(2), **options), nn.Linear(2, 3))


@pytest.mark.parametrize(
    "f", [BatchMean(), BatchMean(0.05), Normed(nn.BatchNorm1d(2)), Normed(nn.Dropout())], ids=range(4)
)
def test_an_f_that_mixes_samples_is_refused(f):
    model = classifier(f).train()
    buffers = [buffer.clone() for buffer in model.buffers()]
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match=MIXES):
        run_candidates(model, [X], [Euler(1)])
    assert all(torch.equal(a, b) for a, b in zip(buffers, model.buffers(), strict=True))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("f", [BatchMean(), BatchMean(0.05)], ids=range(2))
def test_nothing_is_certified_for_an_f_that_mixes_samples(f):
    with pytest.raises(ValueError, match=MIXES):
        make_dynamic(classifier(f), X, settings=[Euler(1)], epsilon=0.05)
    with pytest.raises(ValueError, match=MIXES):
        calibrate(classifier(f), [Euler(1)], X, reference=RK4(2), epsilon=0.05)


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(2), nn.Dropout(), nn.Identity()], ids=range(3))
def test_evaluation_mode_makes_layers_independent(layer):
    """`make_dynamic` and `calibrate` put the model in evaluation mode themselves."""
    assert len(run_candidates(classifier(Normed(layer)).eval(), [X], [Euler(1)])) == 100
    model = classifier(Normed(layer)).train()
    calibrate(model, [Euler(1)], X, reference=RK4(2), epsilon=0.05)
    assert not model.training


def test_blocks_that_never_call_f_on_a_part_of_the_batch_are_not_checked():
    assert len(run_candidates(classifier(BatchMean(), drop_finished=False), [X], [Euler(1)])) == 100


def test_a_row_per_sample_in_a_closure():
    with pytest.raises(ValueError, match="f: it fails on half of a batch, but not on all of it"):
        run_candidates(classifier(Enclosed()), [X], [Euler(1)])
