"""A model with several blocks: each has a policy of its own, made, saved, loaded and exported by name."""

import pytest
import torch
from torch import nn

from dise import (
    RK4,
    AdequacySelector,
    Cascade,
    ConfidenceNetwork,
    Dopri5,
    Dynamic,
    Euler,
    HeunEuler,
    NeuralODE,
    calibrate,
    collect_costs,
    export_policy,
    load_policy,
    make_dynamic,
    profile_candidates,
    save_policy,
)
from dise.select import find_block

CANDIDATES = (Euler(1), RK4(1))
PROBE = HeunEuler(rtol=0.1, atol=0.1, first_step="span", max_steps=1)
SETTINGS = (Cascade((PROBE, RK4(2))), Cascade((PROBE, RK4(1))))
LOOSE = {"epsilon": 0.05, "settings": SETTINGS}


class Turn(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, t, y):
        return 2 * torch.tanh(self.layer(y))


class Two(nn.Module):
    def __init__(self, span=0.5, last=None):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.a, self.middle = NeuralODE(Turn(), RK4(4)), nn.Linear(2, 2)
            self.b, self.head = NeuralODE(Turn(), last or RK4(4), t1=span), nn.Linear(2, 3)

    def forward(self, x):
        return self.head(self.b(self.middle(self.a(x))))


@pytest.fixture(scope="module")
def x():
    return 3 * torch.randn(400, 2, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def made(x):
    """Both blocks made dynamic, first a, then b."""
    model = Two().eval()
    with torch.no_grad():
        expected = model(x).argmax(1)
    for block in ("a", "b"):
        make_dynamic(model, x, block=block, **LOOSE)
    with torch.no_grad():
        assert (model(x).argmax(1) != expected).double().mean() <= 0.1
    return model


def test_each_block_has_its_own_policy_and_report(made, x):
    reports = [find_block(made, name).report for name in "ab"]
    assert all(report.policy is find_block(made, name).integrator for report, name in zip(reports, "ab", strict=True))
    assert all(report.nfe < report.reference_nfe == 16 for report in reports)


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_policies_are_loaded_in_any_order(made, x, tmp_path, order):
    for block in "ab":
        save_policy(made, tmp_path / block, block=block)
    other = Two()
    for block in order:
        load_policy(other, tmp_path / block)
    assert torch.equal(other(x), made(x))
    assert all(str(find_block(other, b).report) == str(find_block(made, b).report) for b in "ab")


def test_a_policy_with_a_copy_of_the_other_block(x, tmp_path):
    """The confidence of the head of a is that of the modules after it, b among them."""
    model = Two().eval()
    head = nn.Sequential(model.middle, model.b, model.head)
    network = ConfidenceNetwork(head, 2, classes=3)
    model.a.integrator = Dynamic(CANDIDATES, AdequacySelector(network, candidates=2).eval())
    assert find_block(model, "b") is model.b
    with pytest.raises(ValueError, match=r"found 2; name one as block=, of \['a', 'b'\]"):
        find_block(model)
    save_policy(model, tmp_path, block="a")
    assert torch.equal(load_policy(Two(), tmp_path)(x), model(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"span": 0.75}, r"the span of its block 'b' is \[0.0, 0.75\]"), ({"last": RK4(8)}, "the reference of its block")],
)
def test_a_policy_is_for_the_spans_and_references_of_the_other_blocks(made, tmp_path, options, message):
    save_policy(made, tmp_path, block="a")
    other = Two(**options)
    with pytest.raises(ValueError, match=f"model: {message}"):
        load_policy(other, tmp_path)
    assert other.a.integrator == RK4(4)
    load_policy(other, tmp_path, check=False)


def test_one_block_is_exported_beside_others_of_fixed_steps(x, tmp_path):
    model = make_dynamic(Two(last=Euler(1)), x, block="a", settings=[Euler(2)], epsilon=0.5)
    export_policy(model, x[:4], tmp_path, block="a")
    graph = torch.export.load(tmp_path / "model.pt2").module()
    torch.testing.assert_close(graph(x), model(x))


@pytest.mark.parametrize("last", [Dopri5(), Cascade(CANDIDATES)], ids=["adaptive", "a policy"])
def test_other_blocks_that_cannot_be_exported(x, tmp_path, last):
    model = Two(last=last)
    with pytest.raises(ValueError, match="its other block 'b' needs a single method with a fixed number of steps"):
        export_policy(model, x[:4], tmp_path, block="a")


def test_everything_that_runs_a_model_takes_the_block(x):
    model, label = Two().eval(), torch.zeros(400)
    assert collect_costs(model, (x, label), CANDIDATES, block="b").nfe[0].tolist() == [1, 4]
    assert profile_candidates(model, x, CANDIDATES, batches=(10,), repeats=1, block=model.a).nfe.tolist() == [[1, 4]]
    assert calibrate(model, [RK4(4)], x, reference=RK4(5), epsilon=0.05, block="b").reference_nfe == 20


def test_blocks_are_named(x):
    message = r"model: expected one dise.NeuralODE inside, found 2; name one as block=, of \['a', 'b'\]"
    for call in (lambda m: make_dynamic(m, x, **LOOSE), lambda m: save_policy(m, "nowhere"), find_block):
        with pytest.raises(ValueError, match=message):
            call(Two())
    for block in ("c", "head", NeuralODE(Turn(), RK4())):
        with pytest.raises(ValueError, match=r"block: expected a dise.NeuralODE of the model, one of \['a', 'b'\]"):
            find_block(Two(), block)
