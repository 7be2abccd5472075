"""Which integrator each sample gets."""

from dise.select.deploy.export import export_policy
from dise.select.deploy.load import load_policy
from dise.select.deploy.save import save_policy
from dise.select.guarantee.calibrate import (
    Calibration,
    Tested,
    calibrate,
    exact_binomial,
    hoeffding_bentkus,
    samples_needed,
)
from dise.select.guarantee.risk import OutputDeviation, ProbabilityShift, Risk, RiskCost, disagreement, lost_accuracy
from dise.select.judging.baselines import PolicyScore, chosen, closed_gap, ideal, oracle, random_mix, single
from dise.select.judging.cost import (
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
from dise.select.judging.diagnose import diagnose
from dise.select.judging.front import pareto_front, prune
from dise.select.judging.non_inferiority import loss_bound
from dise.select.judging.profile import Profile, profile_candidates, time_side_by_side
from dise.select.learning.adequacy import AdequacySelector, calibration_error, equivalent_dial
from dise.select.learning.committee import Committee, cross_fit, route
from dise.select.learning.networks import ConfidenceNetwork, FeatureNetwork, PooledNetwork
from dise.select.learning.penalty import PenaltyChoice, Trial, choose_penalty
from dise.select.learning.selector import CostSelector, Fit
from dise.select.make_dynamic.make import Report, make_dynamic
from dise.select.model.adapt import AdaptedBlock, adapt
from dise.select.model.head import find_head
from dise.select.policies.cascade import Cascade, Confidence
from dise.select.policies.dynamic import AssignedSelector, Dynamic, RandomSelector, channel_means, joined
from dise.select.policies.forecast import Forecast, expect
from dise.select.policies.overhead import count_macs, spent

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
    "Dynamic",
    "FeatureNetwork",
    "Fit",
    "Forecast",
    "Input",
    "Outcomes",
    "OutputDeviation",
    "PenaltyChoice",
    "PolicyScore",
    "PooledNetwork",
    "ProbabilityShift",
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
