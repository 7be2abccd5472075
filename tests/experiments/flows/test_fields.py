import pytest
import torch
from torch.testing import assert_close

from dise import grids, solve
from dise.integrate import Midpoint
from dise_experiments.flows.networks import FieldNetwork
from dise_experiments.flows.sources import NAMES, field, source
from dise_experiments.flows.targets import TARGETS
from dise_experiments.flows.unet import NULL_LABEL, UNet


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("name", TARGETS)
def test_targets_have_mean_0_and_variance_1(name):
    x = TARGETS[name](100_000, torch.Generator().manual_seed(0))
    assert_close(x.mean(0), torch.zeros(2), rtol=0, atol=0.015)
    assert_close(x.std(0), torch.ones(2), rtol=0, atol=0.015)


@pytest.mark.parametrize("name", NAMES)
def test_fields_take_what_their_sources_draw(name):
    found = source(name, simulations=50, sample=True, data_dir=None)
    x, condition = found.draw(3, torch.Generator().manual_seed(0))
    trained, loaded = found.field(), field(name)
    loaded.load_state_dict(trained.state_dict())
    t = torch.full((3, *[1] * (x.ndim - 1)), 0.3)
    assert trained(t, x, *condition).shape == x.shape
    assert trained(t, x, *condition).isfinite().all()
    assert torch.equal(loaded(t, x, *condition), trained(t, x, *condition))


@pytest.mark.parametrize(
    ("network", "x", "condition"),
    [
        (FieldNetwork(2, 3), torch.randn(4, 2), torch.randn(4, 3)),
        (UNet((8, 8, 16)), torch.randn(4, 1, 28, 28), torch.tensor([0, 9, NULL_LABEL, 3])),
    ],
)
def test_a_row_does_not_depend_on_the_others(network, x, condition):
    network, x = network.double().eval(), x.double()
    condition = condition.double() if condition.is_floating_point() else condition
    t = torch.rand(4, *[1] * (x.ndim - 1), dtype=torch.float64)
    together = network(t, x, condition)
    for i in range(4):
        assert_close(network(t[i : i + 1], x[i : i + 1], condition[i : i + 1]), together[i : i + 1])


def test_fields_are_solved_with_conditions():
    network = FieldNetwork(2, 3)
    y = solve(network, torch.randn(4, 2), 0.0, 1.0, Midpoint(grids.sway(4)), sample_args=(torch.randn(4, 3),)).y
    assert y.shape == (4, 2)


def test_conditions_are_standardized():
    network, condition = FieldNetwork(2, 3), 5 + 3 * torch.randn(1000, 3)
    network.standardize(condition)
    shifted = FieldNetwork(2, 3)
    shifted.network.load_state_dict(network.network.state_dict())
    t, x = torch.rand(8, 1), torch.randn(8, 2)
    c = condition[:8]
    assert_close(network(t, x, c), shifted(t, x, (c - condition.mean(0)) / condition.std(0)))


def test_the_unet_has_the_pilots_size():
    assert sum(p.numel() for p in UNet().parameters()) == 769_017


def test_a_label_changes_the_velocity():
    network = UNet((8, 8, 16))
    torch.nn.init.normal_(network.outlet[-1].weight)
    x = torch.randn(1, 1, 28, 28)
    values = [network(torch.tensor(0.5), x, torch.tensor([label])) for label in (1, 2, NULL_LABEL)]
    assert (values[0] - values[1]).abs().max() > 1e-4
    assert (values[0] - values[2]).abs().max() > 1e-4
