"""The kinds of values that a policy may consist of, each with its JSON form."""

from dataclasses import fields
from typing import Any

from dise.integrate import (
    RK4,
    RK38,
    RKC1,
    Adams,
    Bosh3,
    Dopri5,
    Dopri8,
    Euler,
    Fehlberg2,
    Heun,
    HeunEuler,
    IController,
    Midpoint,
    Multistep,
    MultistepTable,
    PIController,
    Ralston,
    StepDoubling,
    TimeGrid,
    Tsit5,
    max_norm,
    rms_norm,
)
from dise.integrate.adams_method import own_controller
from dise.integrate.exact import Exact
from dise.select.deploy.registry import Form, Registry, arguments_form, fields_form, function_form
from dise.select.learning.adequacy import AdequacySelector
from dise.select.learning.committee import Committee
from dise.select.learning.networks import ConfidenceNetwork, PooledNetwork, StateNetwork
from dise.select.learning.selector import CostSelector
from dise.select.policies.baselines import RandomSelector
from dise.select.policies.cascade import Cascade
from dise.select.policies.confidence import Confidence
from dise.select.policies.dynamic import Dynamic
from dise.select.policies.forecast import Forecast

FIXED_STEPS = (Euler, Midpoint, Heun, Ralston, RK4, RK38, RKC1, StepDoubling, Multistep, MultistepTable, TimeGrid)
ADAPTIVE_STEPS = (HeunEuler, Fehlberg2, Bosh3, Dopri5, Tsit5, Dopri8, IController, PIController)


def _adams(method: Adams) -> dict[str, Any]:
    """Its fields; the controller is written down, so that a change of the default does not change a saved policy."""
    return {field.name: getattr(method, field.name) for field in fields(method)} | {
        "controller": method.control.controller
    }


def _made_adams(*, order: int = 4, controller: IController | None = None, **others: Any) -> Adams:
    """The method; a controller that is its own is left to it, so that it prints and compares as the one saved."""
    return Adams(order, controller=None if controller == own_controller(order) else controller, **others)


def _forecast(rule: Forecast) -> dict[str, Any]:
    size = {"classes": len(rule.bias), "channels": rule.channels}
    return {"head": rule.head, "threshold": rule.threshold, **size}


def _cost_selector(selector: CostSelector) -> dict[str, Any]:
    return {"network": selector.network, "candidates": len(selector.mean)}


FORMS: tuple[Form, ...] = (
    *map(fields_form, (*FIXED_STEPS, *ADAPTIVE_STEPS, Exact, Cascade, Dynamic, Confidence)),
    Form(Adams, _adams, _made_adams),
    *map(function_form, (rms_norm, max_norm)),
    arguments_form(Forecast, _forecast),
    arguments_form(CostSelector, _cost_selector),
    arguments_form(AdequacySelector, lambda selector: _cost_selector(selector) | {"dial": selector.dial}),
    arguments_form(Committee, lambda committee: {"members": list(committee.members)}),
    arguments_form(RandomSelector, lambda selector: {"shares": selector.shares.tolist()}),
    *(arguments_form(kind, lambda network: network.settings) for kind in (PooledNetwork, StateNetwork)),
    arguments_form(ConfidenceNetwork, lambda network: {"head": network.original, **network.settings}),
)

POLICIES = Registry(FORMS)
"""dise's own kinds. `POLICIES.register(fields_form(MyMethod))` adds a method of your own, before saving and loading."""
