"""Which integrator each sample gets."""

from dise.select.calibrate import (
    Calibration,
    Tested,
    calibrate,
    disagreement,
    hoeffding_bentkus,
    lost_accuracy,
    samples_needed,
)
from dise.select.cascade import Cascade, Confidence
from dise.select.committee import Committee, cross_fit, route
from dise.select.cost import (
    BinaryCost,
    ClassificationCost,
    CostRule,
    Costs,
    Input,
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
from dise.select.paired import loss_bound
from dise.select.penalty import PenaltyChoice, Trial, choose_penalty
from dise.select.selector import CostSelector, Fit

__all__ = [
    "BinaryCost",
    "Calibration",
    "Cascade",
    "ClassificationCost",
    "Committee",
    "Confidence",
    "ConfidenceNetwork",
    "CostRule",
    "CostSelector",
    "Costs",
    "Dynamic",
    "FeatureNetwork",
    "Fit",
    "Input",
    "Outcomes",
    "PenaltyChoice",
    "PolicyScore",
    "PooledNetwork",
    "TaskErrorCost",
    "Tested",
    "Trial",
    "calibrate",
    "choose_penalty",
    "chosen",
    "collect_costs",
    "cross_fit",
    "diagnose",
    "disagreement",
    "find_block",
    "has_block",
    "hoeffding_bentkus",
    "joined",
    "loss_bound",
    "lost_accuracy",
    "oracle",
    "random_mix",
    "route",
    "run_candidates",
    "samples_needed",
    "single",
]
