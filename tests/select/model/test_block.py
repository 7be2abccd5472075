import torch
from torch import nn

from dise import RK4, Euler, NeuralODE
from dise.select import run_candidates
from dise.select.model.block import device_of


class Growth(nn.Module):
    def forward(self, t, y):
        return y


def test_a_model_without_parameters_is_where_its_buffers_are(batches):
    block = NeuralODE(Growth(), Euler())
    assert run_candidates(nn.Sequential(block), batches(1), (Euler(1), Euler(2), RK4(1))).nfe.tolist() == [[1, 2, 4]]
    assert device_of(block) == torch.device("cpu")
    block.register_buffer("shift", torch.empty(1, device="meta"))
    assert device_of(block) == torch.device("meta")
