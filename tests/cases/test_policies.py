"""What users do with policies, varied: the guarantee means what it says, or an error says what is missing."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import dise
from dise import (
    RK4,
    AdequacySelector,
    Bosh3,
    Cascade,
    Confidence,
    Dopri5,
    Dynamic,
    Euler,
    NeuralODE,
    PooledNetwork,
    calibrate,
    load_policy,
    make_dynamic,
    save_policy,
)
from dise.select import OutputDeviation, ProbabilityShift, disagreement, lost_accuracy

BAD = [math.inf, -math.inf, math.nan]


class Turn(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(2, 2)

    def forward(self, t, y):
        return 2 * torch.tanh(self.layer(y))


def model(outputs=3, t0=0.0, t1=1.0):
    torch.manual_seed(1)
    return nn.Sequential(NeuralODE(Turn(), Dopri5(), t0=t0, t1=t1), nn.Linear(2, outputs)).eval()


def points(number=700):
    return torch.randn(number, 2, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("risk", [disagreement, lost_accuracy, ProbabilityShift(0.9), OutputDeviation(1e9)],
                         ids=["disagreement", "lost", "shift", "deviation"])  # fmt: skip
def test_one_bad_output_is_a_loss(risk, bad):
    reference = torch.tensor([[5.0, 1.0, 0.0], [5.0, 1.0, 0.0]])
    output = reference.clone()
    output[1, 2] = bad
    loss = risk(output, reference, torch.zeros(2, dtype=torch.int64))
    assert loss.tolist() == [0, 1]


def test_a_candidate_that_leaves_a_domain_backwards():
    """log of the state: Euler's one step from 1 to 0 goes below 0, where the head is NaN."""

    class Growth(nn.Module):
        def forward(self, t, y):
            return 3 * y

    class Log(nn.Module):
        def forward(self, h):
            return torch.log(h)

    whole = nn.Sequential(NeuralODE(Growth(), Dopri5(), t0=1.0, t1=0.0), Log()).eval()
    x = torch.rand(700, 2, generator=torch.Generator().manual_seed(0)) + 0.1
    make_dynamic(whole, x, epsilon=0.02, risk=OutputDeviation(0.5), candidates=(Euler(1), RK4(4)))
    assert whole(x).isfinite().all()
    found = calibrate(whole, [Euler(1)], x, reference=Dopri5(), epsilon=0.02, risk=OutputDeviation(0.5))
    assert not found.tests[-1].certified
    assert found.tests[-1].risk == 1


@pytest.mark.parametrize("call", [make_dynamic, lambda m, x, **o: calibrate(m, [RK4(2)], x, reference=Dopri5(), **o)],
                         ids=["make_dynamic", "calibrate"])  # fmt: skip
def test_labels_of_some_batches_only(call):
    x = points()
    labelled = [(part, torch.zeros(len(part), dtype=torch.int64)) for part in x[:350].split(50)]
    with pytest.raises(ValueError, match=r"label|target"):
        call(model(), [*labelled, *x[350:].split(50)], epsilon=0.02, risk=lost_accuracy)


@pytest.mark.parametrize("outputs", [1, 3])
def test_numbers_as_targets_ask_for_a_risk(outputs):
    x = points()
    with pytest.raises(ValueError, match="risk"):
        make_dynamic(model(outputs), (x, torch.randn(700, outputs)), epsilon=0.02)


def test_a_policy_for_the_other_direction(tmp_path):
    whole = make_dynamic(model(), points(), epsilon=0.02, settings=(RK4(4),))
    save_policy(whole, tmp_path)
    other = model(t0=1.0, t1=0.0)
    before = other[0].integrator
    with pytest.raises(ValueError, match=r"its block integrates from 1\.0 to 0\.0"):
        load_policy(other, tmp_path)
    assert other[0].integrator is before


@pytest.mark.filterwarnings("ignore")
def test_a_traced_policy_is_refused():
    whole = make_dynamic(model(), points(), epsilon=0.02, settings=(Bosh3(first_step="span"),))
    with pytest.raises(Exception, match=r"trac|export"):
        torch.jit.trace(whole, points(4))


@pytest.mark.parametrize("data", [{"x": torch.ones(700, 2)}, [], [[]], None, "train", [torch.ones(700, 5)]],
                         ids=["dict", "empty", "empties", "None", "str", "features"])  # fmt: skip
def test_data_of_other_kinds(data):
    with pytest.raises((ValueError, TypeError, RuntimeError)) as caught:
        make_dynamic(model(), data, epsilon=0.02)
    assert "data" in str(caught.value) or "mat1 and mat2" in str(caught.value)


def test_a_block_alone_is_a_model(tmp_path):
    block = NeuralODE(Turn(), Dopri5()).eval()
    make_dynamic(block, points(), epsilon=0.02, risk=OutputDeviation(0.05), settings=(RK4(4),))
    save_policy(block, tmp_path)
    again = NeuralODE(Turn(), Dopri5()).train()
    load_policy(again, tmp_path)
    assert not again.training
    assert torch.equal(again(points(5)), block(points(5)))
    assert isinstance(again.report, dise.select.Report)


def chooser():
    torch.manual_seed(2)
    return Dynamic((Euler(), RK4()), AdequacySelector(PooledNetwork(2, 2), candidates=2).eval())


def test_a_selector_with_a_flipped_bit_anywhere(tmp_path):
    """In float64, beside another policy: refused, and the model keeps its own in training mode."""
    whole = model().double()
    whole[0].integrator = chooser()
    save_policy(whole, tmp_path)
    other = model().double().train()
    other[0].integrator = own = RK4(3)
    for name in ("policy.json", "policy.safetensors"):
        content = (tmp_path / name).read_bytes()
        for at in range(0, len(content), len(content) // 30):
            (tmp_path / name).write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
            with pytest.raises(ValueError, match="folder: "):
                load_policy(other, tmp_path)
            assert (other[0].integrator, other[0].report, other[0].training) == (own, None, True)
        (tmp_path / name).write_bytes(content)
    assert type(load_policy(other, tmp_path)[0].integrator) is Dynamic


class Branches(nn.Module):
    """Blocks in a list, over images, the second one backwards, with parts of the first one's result on the way."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.blocks = nn.ModuleList([NeuralODE(Convolve(), RK4(4)), NeuralODE(Convolve(), RK4(4), t0=1.0, t1=0.0)])
        self.head = nn.Linear(2, 3)

    def forward(self, x):
        first = self.blocks[0](x)
        return self.head((x + self.blocks[1](first)).mean((2, 3)))


class Convolve(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, t, y):
        return torch.tanh(self.layer(y))


def test_the_second_of_two_blocks_over_images(tmp_path):
    images, whole = torch.randn(300, 2, 3, 3, generator=torch.Generator().manual_seed(0)), Branches().eval()
    with pytest.raises(ValueError, match=r"name one as block=, of \['blocks.0', 'blocks.1'\]"):
        make_dynamic(whole, images, epsilon=0.05)
    expected = whole(images).argmax(1)
    make_dynamic(whole, images, epsilon=0.05, block="blocks.1", settings=(RK4(2),))
    assert (whole.blocks[0].integrator, whole.blocks[1].integrator) == (RK4(4), RK4(2))
    assert (whole(images).argmax(1) != expected).double().mean() <= 0.05
    save_policy(whole, tmp_path, block="blocks.1")
    again = load_policy(Branches(), tmp_path)
    assert torch.equal(again(images), whole(images))
    other = Branches()
    other.blocks[1] = NeuralODE(other.blocks[1].f, RK4(4))
    with pytest.raises(ValueError, match=r"its block 'blocks.1' integrates|its block integrates"):
        load_policy(other, tmp_path)


def test_a_slow_policy_of_a_regression_is_called_slow(tmp_path):
    """A cascade in float64, backwards, at the loader's batch size; its milliseconds come back with it."""
    reference, (whole, again) = Dopri5(rtol=1e-9, atol=1e-9), (model(2, t0=1.0, t1=0.0).double() for _ in "12")
    for each in (whole, again):
        each[0].integrator = reference
    slow = Cascade((Euler(1), Euler(2), RK4(1)), Confidence(whole[1], 1.0))
    data = torch.utils.data.DataLoader(points(140).double(), batch_size=70)
    make_dynamic(whole, data, epsilon=0.1, risk=OutputDeviation(2.0), settings=(slow,))
    report = whole[0].report
    assert report.policy == slow
    assert report.timing.batch == 70
    assert "milliseconds per batch of 70" in str(report)
    slower = replace(report, timing=replace(report.timing, policy=2.0, reference=1.0))
    assert "At this batch size the policy is slower than the reference" in str(slower)
    whole[0].report = slower
    save_policy(whole, tmp_path)
    assert str(load_policy(again, tmp_path)[0].report) == str(slower)
