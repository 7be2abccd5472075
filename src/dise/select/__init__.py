"""Which integrator each sample gets."""

from dise.select.cascade import Cascade, Confidence
from dise.select.cost import (
    ClassificationCost,
    CostRule,
    Costs,
    Outcomes,
    TaskErrorCost,
    collect_costs,
    find_block,
    has_block,
    run_candidates,
)
from dise.select.diagnose import diagnose
from dise.select.dynamic import Dynamic, joined
from dise.select.evaluate import PolicyScore, chosen, oracle, random_mix, single
from dise.select.networks import ConfidenceNetwork, FeatureNetwork, PooledNetwork
from dise.select.penalty import PenaltyChoice, Trial, choose_penalty, route
from dise.select.selector import CostSelector, Fit

__all__ = [
    "Cascade",
    "ClassificationCost",
    "Confidence",
    "ConfidenceNetwork",
    "CostRule",
    "CostSelector",
    "Costs",
    "Dynamic",
    "FeatureNetwork",
    "Fit",
    "Outcomes",
    "PenaltyChoice",
    "PolicyScore",
    "PooledNetwork",
    "TaskErrorCost",
    "Trial",
    "choose_penalty",
    "chosen",
    "collect_costs",
    "diagnose",
    "find_block",
    "has_block",
    "joined",
    "oracle",
    "random_mix",
    "route",
    "run_candidates",
    "single",
]
