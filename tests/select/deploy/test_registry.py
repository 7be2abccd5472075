"""Every kind that a policy may consist of has one JSON form."""

import inspect

import pytest
import torch
from torch import nn

import dise
from dise import RK4, Adams, Euler, FixedStep, IController, Integrator, PIController, StepDoubling
from dise.select import AssignedSelector, FeatureNetwork
from dise.select.deploy.forms import FORMS, POLICIES
from dise.select.deploy.registry import PolicyJson, Registry, fields_form


class Twice(FixedStep):
    """A method of a user."""

    tableau = RK4.tableau


def public(base):
    classes = (getattr(dise, name) for name in dise.__all__)
    return [cls for cls in classes if inspect.isclass(cls) and issubclass(cls, base) and not inspect.isabstract(cls)]


def test_every_integrator_controller_and_network_of_dise_has_a_form():
    abstract = {dise.FixedStep, dise.Adaptive}  # without a tableau
    for base in (Integrator, IController, FeatureNetwork):
        kinds = [cls for cls in public(base) if cls not in abstract]
        assert kinds
        for cls in kinds:
            assert POLICIES.of_name(cls.__name__).kind is cls


def test_a_kind_of_ones_own_is_one_registration():
    model, registry = nn.Sequential(), Registry(FORMS)
    with pytest.raises(ValueError, match=r"integrator: Twice.* cannot be saved: only dise's integrators"):
        PolicyJson(registry, model).write(Twice(3), "integrator")
    registry.register(fields_form(Twice))
    written = PolicyJson(registry, model).write(StepDoubling(RK4(2)), "integrator") | {"rtol": 0.5}
    assert PolicyJson(registry, model).read(written) == StepDoubling(RK4(2), rtol=0.5)
    written = PolicyJson(registry, model).write(Twice(3), "integrator")
    assert written == {"kind": "Twice", "steps": 3}
    assert PolicyJson(registry, model).read(written) == Twice(3)


@pytest.mark.parametrize(
    ("order", "written"),
    [
        (4, PIController(safety=0.65, proportional=0.1, integral=0.9)),
        (7, PIController(safety=0.8, proportional=0.3, integral=0.7)),
    ],
)
def test_a_saved_adams_method_keeps_its_controller(order, written):
    """Whatever the default will be; and read, the default is that of a method of one's own."""
    json = PolicyJson(POLICIES, nn.Sequential())
    saved = json.write(Adams(order), "integrator")
    assert json.read(saved["controller"]) == written
    assert json.read(saved) == Adams(order)
    for other in (Adams(order, controller=IController()), Adams(11 - order, controller=written)):
        assert json.read(json.write(other, "integrator")) == other


def test_two_kinds_of_one_name_are_refused():
    with pytest.raises(ValueError, match="form: a kind named 'Euler' is registered already"):
        Registry([fields_form(Euler), fields_form(type("Euler", (FixedStep,), {"tableau": RK4.tableau}))])


def test_kinds_without_a_form():
    json = PolicyJson(POLICIES, nn.Sequential())
    with pytest.raises(ValueError, match=r"here: AssignedSelector\(\) cannot be saved"):
        json.write(AssignedSelector(torch.tensor([0]), 1), "here")
    for value in ({}, {"kind": ["Euler"]}, {"kind": "os.system", "command": "true"}):
        with pytest.raises(ValueError, match=r"folder: the policy has a part of kind .* which is not known here"):
            json.read(value)
