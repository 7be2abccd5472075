import pytest
import torch
from torch.testing import assert_close

from dise.select import channel_means, concatenate_state


@pytest.mark.parametrize(
    ("state", "means"),
    [
        (torch.arange(12.0).reshape(1, 3, 2, 2), [1.5, 5.5, 9.5]),
        (torch.arange(3.0).reshape(1, 3), [0.0, 1.0, 2.0]),
        (torch.tensor([7.0]), [7.0]),
        (torch.tensor([[1 + 2j, 3 + 4j]]), [1.0, 3.0, 2.0, 4.0]),
        ((torch.ones(1, 2), 3 * torch.ones(1, 1)), [1.0, 1.0, 3.0]),
    ],
)
def test_means_of_a_states_channels(state, means):
    assert_close(channel_means(state), torch.tensor([means]))


def test_joined_keeps_shared_dimensions_and_flattens_others():
    a, b = torch.zeros(5, 3, 2), torch.zeros(5, 3, 1)
    assert concatenate_state((a, b)).shape == (5, 3, 3)
    assert concatenate_state((a, b[:, :2])).shape == (5, 8)
    assert concatenate_state(a) is a
