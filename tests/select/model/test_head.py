import torch
from torch import nn

from dise import RK4, NeuralODE
from dise.select import find_head

X = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))


class Model(nn.Module):
    """Modules called in their order, or with something of its own at the end."""

    def __init__(self, *parts, end=lambda x: x):
        super().__init__()
        self.first, self.body, self.last = parts
        self.end = end

    def forward(self, x):
        return self.end(self.last(self.body(self.first(x))))


def head_of(model, block):
    return find_head(model.eval(), block, X)


def test_the_modules_after_the_block_in_a_sequence(decay):
    block = NeuralODE(decay(), RK4())
    tail = [nn.ReLU(inplace=True), nn.Linear(2, 3)]
    head = head_of(nn.Sequential(nn.Linear(2, 2), block, *tail), block)
    assert list(head) == tail


def test_one_module_is_the_head_itself(decay):
    block, last = NeuralODE(decay(), RK4()), nn.Linear(2, 3)
    assert head_of(nn.Sequential(block, last), block) is last


def test_modules_of_every_level_after_the_block(decay):
    block, inner, last = NeuralODE(decay(), RK4()), nn.Tanh(), nn.Linear(2, 3)
    model = Model(nn.Linear(2, 2), nn.Sequential(nn.Tanh(), block, inner), last)
    assert list(head_of(model, block)) == [inner, last]


def test_nothing_after_the_block(decay):
    block = NeuralODE(decay(), RK4())
    head = head_of(nn.Sequential(nn.Linear(2, 2), block), block)
    assert torch.equal(head(X), X)


def test_something_that_is_no_module(decay):
    block = NeuralODE(decay(), RK4())
    model = Model(nn.Linear(2, 2), block, nn.Linear(2, 3), end=lambda x: x + 1)
    assert head_of(model, block) is None
    assert head_of(Model(nn.Linear(2, 2), block, nn.Linear(2, 3), end=lambda x: (x, x)), block) is None


def test_modules_that_are_called_in_another_order(decay):
    class Reversed(Model):
        def forward(self, x):
            return self.first(self.last(self.body(x)))

    block = NeuralODE(decay(), RK4())
    assert head_of(Reversed(nn.Linear(2, 2), block, nn.Linear(2, 2)), block) is None
    # shapes that do not fit are no answer either
    assert head_of(Reversed(nn.Linear(3, 2), block, nn.Linear(2, 3)), block) is None


def test_a_block_that_is_called_twice(decay):
    class Twice(Model):
        def forward(self, x):
            return self.last(self.body(self.body(self.first(x))))

    block = NeuralODE(decay(), RK4())
    assert head_of(Twice(nn.Linear(2, 2), block, nn.Linear(2, 3)), block) is None
