import json
import sys

import pytest
import torch
from torch import nn

from dise import (
    RK4,
    RKC1,
    AdequacySelector,
    Bosh3,
    Cascade,
    Confidence,
    ConfidenceNetwork,
    CostSelector,
    Dopri5,
    Dynamic,
    Euler,
    Forecast,
    NeuralODE,
    PIController,
    PooledNetwork,
    RandomSelector,
    StepDoubling,
    load_policy,
    make_dynamic,
    max_norm,
    save_policy,
)
from dise.select import Committee, adapt, find_block
from dise.select.deploy.binding import fingerprint
from dise.select.deploy.unit import checksum


def randomized(module):
    """Weights and buffers that no constructor gives."""
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for value in [*module.parameters(), *module.buffers()]:
            value.copy_(torch.rand(value.shape, generator=draw) + 0.1)
    return module.eval()


def policies(model):
    head = model[2]
    three = (Euler(1), RK4(2), Dopri5(rtol=1e-5, atol=1e-6, first_step="span"))
    adequacy = AdequacySelector(ConfidenceNetwork(head, 3, classes=3, span=2.0), candidates=3, dial=7.5)
    return {
        "single": RK4(3),
        "damped": RKC1(2, 3, 0.3),
        "controlled": Dopri5(
            rtol=torch.tensor([1e-3, 1e-4]), dt_max=0.25, controller=PIController(safety=0.8), norm=max_norm
        ),
        "doubled": StepDoubling(RK4(2), rtol=1e-5),
        "cascade": Cascade(three, Confidence(head, 0.9, measure="margin")),
        "cascade with rules": Cascade(
            list(three), [Confidence(head, 3.0, measure="gap"), Confidence(head, 0.5, measure="entropy")]
        ),
        "forecasts": Cascade(
            three, [randomized(Forecast(head, t, classes=3, channels=d)) for t, d in ((1.5, 2), (-0.5, 0))]
        ),
        "embedded": Cascade((Bosh3(rtol=0.1, atol=0.2, first_step=0.5, max_steps=1), three[2])),
        "costs": Dynamic(
            three, randomized(CostSelector(PooledNetwork(2, 3, hidden=5, derivative=False), candidates=3))
        ),
        "committee": Dynamic(
            three, randomized(Committee([CostSelector(PooledNetwork(2, 3), candidates=3) for _ in range(2)]))
        ),
        "adequacy": Dynamic(three, randomized(adequacy), granularity="batch"),
        "nested": Cascade((Euler(2), Dynamic(three, randomized(adequacy))), Confidence(head, 0.99)),
        "random": Dynamic(three[:2], RandomSelector([0.0, 1.0])),
    }


@pytest.mark.parametrize("name", policies([None, None, nn.Linear(1, 1)]))
def test_a_policy_comes_back_with_its_weights(classifier, points, tmp_path, name):
    model = classifier().eval()
    model[1].integrator = policies(model)[name]
    save_policy(model, tmp_path / "policy")
    other = load_policy(classifier().eval(), tmp_path / "policy")
    x = torch.cat(points(300))
    with torch.no_grad(), model[1].recording() as first, other[1].recording() as second:
        assert torch.equal(model(x), other(x))
    assert torch.equal(first[0].solution.nfe, second[0].solution.nfe)
    assert str(other[1].integrator) == str(model[1].integrator)
    assert (tmp_path / "policy" / "policy.safetensors").exists() == hasattr(model[1], "policy")


def test_what_make_dynamic_did_comes_back(classifier, points, tmp_path):
    model = make_dynamic(classifier(), points(1000), epsilon=0.02)
    save_policy(model, tmp_path)
    other = load_policy(classifier(), tmp_path)
    assert str(find_block(other).report) == str(find_block(model).report)
    assert find_block(other).report.policy is find_block(other).integrator


def test_a_policy_is_for_its_models_weights(classifier, tmp_path):
    model = classifier()
    save_policy(model, tmp_path)
    other = classifier(seed=1)
    with pytest.raises(ValueError, match="model: its weights are not those that the policy was made for"):
        load_policy(other, tmp_path)
    load_policy(other, tmp_path, check=False)


def test_a_policy_is_for_its_models_dtype(classifier, tmp_path):
    save_policy(classifier(), tmp_path)
    with pytest.raises(ValueError, match="model: its weights are not those that the policy was made for"):
        load_policy(classifier().double(), tmp_path)


def test_a_policy_is_for_its_blocks_span(classifier, tmp_path):
    model = classifier()
    model[1].t1 = torch.tensor(3.0)
    model[1].integrator = RK4(3)
    save_policy(model, tmp_path)
    other = classifier()
    other[1].t1 = 6.0
    with pytest.raises(ValueError, match=r"model: its block integrates from 0.0 to 6.0, .* was made for 0.0 to 3.0"):
        load_policy(other, tmp_path)
    assert other[1].integrator == Dopri5(rtol=1e-4, atol=1e-4)
    other[1].t1 = 3.0
    assert load_policy(other, tmp_path)[1].integrator == RK4(3)


class Theirs(nn.Module):
    """A block as published models have it, its span a buffer."""

    def __init__(self, odefunc, end):
        super().__init__()
        self.odefunc = odefunc
        self.register_buffer("integration_time", torch.tensor([0.0, end]))


def test_a_policy_of_a_block_in_the_place_of_another(decay, tmp_path):
    model = nn.Sequential(adapt(Theirs(decay(), 3.0), RK4(3)))
    save_policy(model, tmp_path)
    other = nn.Sequential(Theirs(decay(), 6.0))
    with pytest.raises(ValueError, match=r"model: its block integrates from 0.0 to 6.0, .* was made for 0.0 to 3.0"):
        load_policy(other, tmp_path)
    assert isinstance(other[0], Theirs)
    same = nn.Sequential(Theirs(decay(), 3.0))
    assert torch.equal(load_policy(same, tmp_path)(torch.ones(2, 1)), model(torch.ones(2, 1)))


def test_a_policy_is_for_its_reference(classifier, points, tmp_path):
    model = make_dynamic(classifier(), points(500), epsilon=0.02, settings=[RK4(4)])
    save_policy(model, tmp_path)
    other = classifier()
    other[1].integrator = Dopri5(rtol=1e-2, atol=1e-2)
    with pytest.raises(ValueError, match=r"model: its integrator is Dopri5\(rtol=0.01.*policy's reference is Dopri5"):
        load_policy(other, tmp_path)
    assert other[1].report is None
    load_policy(other, tmp_path, check=False)
    again = load_policy(load_policy(classifier(), tmp_path), tmp_path)
    assert find_block(again).report.reference == Dopri5(rtol=1e-4, atol=1e-4)


def test_a_loaded_policys_model_is_in_evaluation_mode(classifier, tmp_path):
    save_policy(classifier(), tmp_path)
    model = load_policy(classifier().train(), tmp_path)
    assert not any(module.training for module in model.modules())


def test_rules_that_share_what_they_learnt(classifier, points, tmp_path):
    model = classifier().eval()
    forecast = randomized(Forecast(model[2], 0.5, classes=3))
    model[1].integrator = Cascade((Euler(1), RK4(1), RK4(4)), (forecast, forecast.with_threshold(1.5)))
    save_policy(model, tmp_path)
    x = torch.cat(points(300))
    assert torch.equal(load_policy(classifier().eval(), tmp_path)(x), model(x))


def test_networks_keep_their_dtype(classifier, points, tmp_path):
    model = classifier().eval().double()
    model[1].integrator = policies(model)["costs"]
    model[1].policy.double()
    save_policy(model, tmp_path)
    other = load_policy(classifier().eval().double(), tmp_path)
    assert {value.dtype for value in other[1].policy.state_dict().values()} == {torch.float64}
    x = torch.cat(points(300)).double()
    assert torch.equal(other(x), model(x))


def test_a_policy_without_networks_leaves_none_of_an_earlier_one(classifier, tmp_path):
    model = classifier()
    for name in ("costs", "single"):
        model[1].integrator = policies(model)[name]
        save_policy(model, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["policy.json"]


def test_the_fingerprint_is_of_the_model_without_its_policy(classifier):
    model = classifier()
    before = fingerprint(model)
    for policy in policies(model).values():
        model[1].integrator = policy
        assert fingerprint(model) == before
    with torch.no_grad():
        model[0].bias[0] += 1
    assert fingerprint(model) != before


def test_no_file_is_a_pickle(classifier, tmp_path):
    model = classifier()
    model[1].integrator = policies(model)["adequacy"]
    save_policy(model, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["policy.json", "policy.safetensors"]
    assert json.loads((tmp_path / "policy.json").read_text())["integrator"]["selector"]["dial"] == 7.5


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (Cascade((Euler(), RK4()), lambda y: y[:, 0] > 0), r"integrator.accept: <function .* cannot be saved"),
        (Dopri5(norm=lambda x: x), r"integrator.norm: <function .* cannot be saved"),
        (Dynamic((Euler(),), nn.Identity()), r"integrator.selector: Identity\(\) cannot be saved"),
        (Cascade((Euler(), RK4()), Confidence(nn.Linear(2, 3), 0.5)), "the head is not made of modules of the model"),
        (
            Dynamic((Euler(),), CostSelector(nn.Identity(), candidates=1)),
            r"integrator.selector.network: Identity\(\) cannot be saved: only dise's integrators",
        ),
    ],
)
def test_what_only_python_knows(classifier, tmp_path, policy, message):
    model = classifier()
    model[1].integrator = policy
    with pytest.raises(ValueError, match=message):
        save_policy(model, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_model_that_is_a_block(classifier, tmp_path, decay):
    """The block's name is empty then."""
    model, other = (NeuralODE(decay(), Euler()) for _ in range(2))
    selector = CostSelector(PooledNetwork(2, 2), candidates=2)
    model.integrator = Dynamic((Euler(1), RK4(1)), randomized(selector))
    save_policy(model, tmp_path)
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(load_policy(other, tmp_path)(x), model(x))


def test_safetensors_is_needed_by_policies_with_networks_alone(classifier, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    model = classifier()
    model[1].integrator = policies(model)["cascade"]
    save_policy(model, tmp_path / "cascade")
    load_policy(classifier(), tmp_path / "cascade")
    model[1].integrator = policies(model)["costs"]
    with pytest.raises(ImportError, match="a policy with networks is saved as safetensors: pip install safetensors"):
        save_policy(model, tmp_path / "costs")
    assert not (tmp_path / "costs").exists()


@pytest.mark.parametrize("content", [None, "{", "[]", "{}"])
def test_files_that_hold_no_policy(classifier, tmp_path, content):
    if content is not None:
        (tmp_path / "policy.json").write_text(content)
    with pytest.raises(ValueError, match=r"folder: .* holds no policy that can be read"):
        load_policy(classifier(), tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 1}, "folder: .* holds a policy of format 1, expected 3"),
        ({"block": {"name": "7", "f": None}}, "model: expected a module '7', where the policy's block is"),
        ({"block": {"name": "0", "f": None}}, "model: expected a dise.NeuralODE at '0', got Linear"),
        ({"integrator": {"kind": "Magic"}}, "folder: the policy has a part of kind 'Magic'"),
        (
            {"integrator": {"kind": "Confidence", "head": "9", "threshold": 0.5, "measure": "top"}},
            "model: expected modules 9, which the policy's head is made of",
        ),
        ({"integrator": 7}, "folder: .* holds no policy that can be read .expected an integrator, got 7"),
        ({"integrator": {"kind": "Euler", "stages": 3}}, "folder: .* holds no policy that can be read .*stages"),
        ({"block": {}}, "folder: .* holds no policy that can be read .'name'"),
        ({"report": {"policy": "Euler"}}, "folder: .* holds no policy that can be read .'families'"),
    ],
)
def test_policies_that_do_not_fit(classifier, tmp_path, change, message):
    save_policy(classifier(), tmp_path)
    signed_again(tmp_path, change)
    with pytest.raises(ValueError, match=message):
        load_policy(classifier(), tmp_path)


def signed_again(folder, change):
    """Change the JSON of a policy, checksum included."""
    file = folder / "policy.json"
    content = json.loads(file.read_text()) | change
    content["checksum"] = checksum({key: value for key, value in content.items() if key != "checksum"})
    file.write_text(json.dumps(content))
