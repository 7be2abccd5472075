import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from dise.select import ConfidenceNetwork, PooledNetwork

# ---- PooledNetwork


@pytest.mark.parametrize("shape", [(), (7,), (3, 5), (2, 3, 4)])
def test_scores_have_a_row_a_sample_whatever_the_space(shape):
    h0, k1 = torch.randn(2, 6, 5, *shape, generator=torch.Generator().manual_seed(0))
    scores = PooledNetwork(5, 3)(h0, k1)
    assert scores.shape == (6, 3)
    # (4·5 + 1)·32 + (32 + 1)·3
    assert sum(p.numel() for p in PooledNetwork(5, 3).parameters()) == 771


def test_features_are_channel_means_and_root_mean_squares():
    pooled = PooledNetwork(2, 1)
    pooled.layers = nn.Identity()
    h0 = torch.tensor([[[3.0, -3.0], [1.0, 7.0]]])
    k1 = torch.tensor([[[0.0, 0.0], [-2.0, -2.0]]])
    assert_close(pooled(h0, k1), torch.tensor([[0.0, 4.0, 0.0, -2.0, 3.0, 5.0, 0.0, 2.0]]))


def test_the_derivative_may_be_left_out():
    pooled = PooledNetwork(2, 1, derivative=False)
    pooled.layers = nn.Identity()
    h0 = torch.tensor([[[3.0, -3.0], [1.0, 7.0]]])
    assert_close(pooled(h0, torch.full_like(h0, torch.nan)), torch.tensor([[0.0, 4.0, 3.0, 5.0]]))


def test_standardised_features_have_mean_0_and_deviation_1():
    pooled = PooledNetwork(1, 1)
    pooled.layers = nn.Identity()
    # constant images 1 and 3, derivatives -2 and -6: means 2 and -4, deviations √2 and √8
    h0 = torch.tensor([1.0, 3.0])[:, None, None].expand(2, 1, 4)
    pooled.standardise(pooled.features(h0, -2 * h0))
    assert_close(pooled.mean, torch.tensor([2.0, -4.0, 2.0, 4.0]))
    assert_close(pooled.scale, torch.tensor([2.0, 8.0, 2.0, 8.0]).sqrt())
    features = pooled(h0, -2 * h0)
    assert_close(features.mean(0), torch.zeros(4))
    assert_close(features.std(0), torch.ones(4))


def test_a_constant_feature_stays_finite():
    pooled = PooledNetwork(1, 1)
    h0 = torch.ones(5, 1, 3)
    pooled.standardise(pooled.features(h0, h0))
    assert pooled(h0, h0).isfinite().all()


def test_conditions_are_pooled_like_states():
    pooled = PooledNetwork(1, 1, derivative=False, condition_channels=3)
    pooled.layers = nn.Identity()
    h0 = torch.tensor([[2.0], [4.0]])
    label, image = torch.tensor([7, 0]), torch.tensor([[[3.0, -3.0], [1.0, 7.0]], [[0.0, 0.0], [1.0, 1.0]]])
    expected = torch.tensor([[2.0, 7, 0, 4, 2, 7, 3, 5], [4.0, 0, 0, 1, 4, 0, 0, 1]])
    assert pooled.conditional
    assert_close(pooled(h0, h0, label, image), expected)
    assert pooled(h0[:0], h0[:0], label[:0], image[:0]).shape == (0, 8)


def test_conditions_that_are_not_there_are_missed():
    h0 = torch.ones(3, 2)
    pooled = PooledNetwork(2, 1, condition_channels=3)
    with pytest.raises(
        ValueError, match=r"expected 2 channels in each of h0 and k1, and 3 in all conditions, got \[2, 2"
    ):
        pooled(h0, h0)
    with pytest.raises(ValueError, match=r"got \[2, 2, 1, 1\]"):
        pooled(h0, h0, h0[:, 0], h0[:, 0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.complex64])
def test_states_of_any_dtype_are_scored(dtype):
    h0 = torch.randn(6, 2, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    pooled = PooledNetwork(4 if dtype.is_complex else 2, 3)
    pooled.standardise(pooled.features(h0, 1j * h0 if dtype.is_complex else h0))
    scores = pooled(h0, 1j * h0 if dtype.is_complex else h0)
    assert scores.dtype == torch.float32
    assert scores.isfinite().all()


# ---- ConfidenceNetwork


class Head(nn.Module):
    """Logits are the state's three features, scaled; it must not be trained."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.drop = nn.Dropout(0.5)

    def forward(self, h):
        return self.drop(self.scale * h)


def test_features_are_the_sorted_log_probabilities_and_the_entropy_of_eulers_answer():
    network = ConfidenceNetwork(Head(), 2, classes=3, span=0.5)
    # h0 + k1/2 = (log 1, log 4, log 3)/2 and scale 2: probabilities 1/8, 4/8, 3/8
    end = torch.tensor([[1.0, 4.0, 3.0]]).log() / 2
    h0 = torch.tensor([[0.3, -0.2, 0.7]])
    features = network.features(h0, 2 * (end - h0))
    p = torch.tensor([4 / 8, 3 / 8, 1 / 8])
    entropy = -sum(q * math.log(q) for q in p.tolist())
    assert_close(features, torch.cat([p.log(), torch.tensor([entropy])])[None])
    assert network(h0, h0).shape == (1, 2)


def test_two_classes_have_three_features():
    network = ConfidenceNetwork(nn.Identity(), 4, classes=2)
    assert network.features(torch.zeros(5, 2), torch.zeros(5, 2)).shape == (5, 3)
    assert network(torch.zeros(5, 2), torch.zeros(5, 2)).shape == (5, 4)


def test_the_head_is_a_copy_that_is_never_trained():
    head = Head()
    network = ConfidenceNetwork(head, 2, classes=3).train()
    assert network.training
    assert not network.head.training
    assert not any(p.requires_grad for p in network.head.parameters())
    assert head.scale.requires_grad
    with torch.no_grad():
        head.scale.zero_()
    assert network.head.scale == 2
    assert "head.scale" in network.state_dict()
