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
from dise.select import Committee, find_block
from dise.select.deploy.fingerprint import fingerprint


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
    assert not list((tmp_path / "costs").iterdir())


@pytest.mark.parametrize("content", [None, "{", "[]", "{}"])
def test_files_that_hold_no_policy(classifier, tmp_path, content):
    if content is not None:
        (tmp_path / "policy.json").write_text(content)
    with pytest.raises(ValueError, match=r"folder: .* holds no policy that can be read"):
        load_policy(classifier(), tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 1}, "folder: .* holds a policy of format 1, expected 2"),
        ({"block": {"name": "7"}}, "model: expected a module '7', where the policy's block is"),
        ({"block": {"name": "0"}}, "model: expected a dise.NeuralODE at '0', got Linear"),
        ({"integrator": {"kind": "Magic"}}, "folder: the policy has a part of kind 'Magic'"),
        (
            {"integrator": {"kind": "Confidence", "head": "9", "threshold": 0.5, "measure": "top"}},
            "model: expected modules 9, which the policy's head is made of",
        ),
    ],
)
def test_policies_that_do_not_fit(classifier, tmp_path, change, message):
    save_policy(classifier(), tmp_path)
    file = tmp_path / "policy.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        load_policy(classifier(), tmp_path)
