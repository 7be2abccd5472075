"""Which integrator each sample gets."""

from dise.select.adapt import AdaptedBlock, adapt
from dise.select.adequacy import AdequacySelector, calibration_error, equivalent_dial
from dise.select.calibrate import (
    Calibration,
    Tested,
    calibrate,
    exact_binomial,
    hoeffding_bentkus,
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
from dise.select.dynamic import AssignedSelector, Dynamic, RandomSelector, channel_means, joined
from dise.select.evaluate import PolicyScore, chosen, closed_gap, ideal, oracle, random_mix, single
from dise.select.export import export_policy
from dise.select.forecast import Forecast, expect
from dise.select.front import pareto_front, prune
from dise.select.head import find_head
from dise.select.looks import count_macs, spent
from dise.select.make import Report, make_dynamic
from dise.select.networks import ConfidenceNetwork, FeatureNetwork, PooledNetwork
from dise.select.paired import loss_bound
from dise.select.penalty import PenaltyChoice, Trial, choose_penalty
from dise.select.profile import Profile, profile_candidates, time_side_by_side
from dise.select.risk import Deviates, Moved, Risk, RiskCost, disagreement, lost_accuracy
from dise.select.selector import CostSelector, Fit
from dise.select.store import load_policy, save_policy

__all__ = [
    "AdaptedBlock",
    "AdequacySelector",
    "AssignedSelector",
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
    "Deviates",
    "Dynamic",
    "FeatureNetwork",
    "Fit",
    "Forecast",
    "Input",
    "Moved",
    "Outcomes",
    "PenaltyChoice",
    "PolicyScore",
    "PooledNetwork",
    "Profile",
    "RandomSelector",
    "Report",
    "Risk",
    "RiskCost",
    "TaskErrorCost",
    "Tested",
    "Trial",
    "adapt",
    "calibrate",
    "calibration_error",
    "channel_means",
    "choose_penalty",
    "chosen",
    "closed_gap",
    "collect_costs",
    "count_macs",
    "cross_fit",
    "diagnose",
    "disagreement",
    "equivalent_dial",
    "exact_binomial",
    "expect",
    "export_policy",
    "find_block",
    "find_head",
    "has_block",
    "hoeffding_bentkus",
    "ideal",
    "joined",
    "load_policy",
    "loss_bound",
    "lost_accuracy",
    "make_dynamic",
    "oracle",
    "pareto_front",
    "profile_candidates",
    "prune",
    "random_mix",
    "route",
    "run_candidates",
    "samples_needed",
    "save_policy",
    "single",
    "spent",
    "time_side_by_side",
]
