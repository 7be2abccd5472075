"""Which integrator each sample gets.

Seven wings, one floor each; imports point down this list and within a floor, never up:

    deploy        save, load and export a policy
    make_dynamic  one call that makes a trained model dynamic
    guarantee     risks, and tests that bound them (Learn then Test)
    learning      selectors, their networks and fits, the choice of M and α
    judging       costs (Eq. 4 and 5), baselines, Pareto front, measured time, diagnosis
    policies      integrators that assign integrators: Dynamic, Cascade and what they decide by
    model         a model around its block: finding it and the head, running candidates, states and logits

Below them lie `dise.nn` and `dise.integrate`.
"""

from dise.select.deploy.export import export_policy
from dise.select.deploy.load import load_policy
from dise.select.deploy.save import save_policy
from dise.select.guarantee.calibrate import (
    Calibration,
    SettingTest,
    calibrate,
    exact_binomial,
    hoeffding_bentkus,
    samples_needed,
)
from dise.select.guarantee.risk import (
    LogProbDeviation,
    OutputDeviation,
    ProbabilityShift,
    Risk,
    RiskCost,
    disagreement,
    lost_accuracy,
)
from dise.select.judging.baselines import (
    PolicyScore,
    assignment_score,
    closed_gap_fraction,
    oracle,
    oracle_choice,
    random_mix,
    single_candidate,
)
from dise.select.judging.costs import Costs, collect_costs
from dise.select.judging.diagnose import diagnose
from dise.select.judging.front import pareto_front, prune
from dise.select.judging.non_inferiority import loss_bound
from dise.select.judging.profile import Profile, profile_candidates, time_side_by_side
from dise.select.judging.rules import BinaryCost, ClassificationCost, CostRule, TaskErrorCost
from dise.select.learning.adequacy import AdequacySelector, calibration_error, equivalent_dial
from dise.select.learning.committee import Committee, cross_fit, selector_choice
from dise.select.learning.fit import FitHistory
from dise.select.learning.networks import ConfidenceNetwork, FeatureNetwork, PooledNetwork, StateNetwork
from dise.select.learning.penalty import PenaltyChoice, PenaltyTrial, choose_penalty
from dise.select.learning.selector import CostSelector
from dise.select.make_dynamic.comparison import Comparison
from dise.select.make_dynamic.make import make_dynamic
from dise.select.make_dynamic.report import Report
from dise.select.model.adapt import AdaptedBlock, adapt
from dise.select.model.block import contains_block, find_block
from dise.select.model.head import find_head
from dise.select.model.inputs import Input
from dise.select.model.outcomes import Outcomes, run_candidates
from dise.select.model.states import channel_means, concatenate_state
from dise.select.policies.baselines import AssignedSelector, RandomSelector
from dise.select.policies.cascade import Cascade
from dise.select.policies.confidence import Confidence
from dise.select.policies.dynamic import Dynamic
from dise.select.policies.forecast import Forecast
from dise.select.policies.forecast_fit import fit_forecast
from dise.select.policies.overhead import count_macs, nfe_with_overhead

__all__ = [
    "AdaptedBlock",
    "AdequacySelector",
    "AssignedSelector",
    "BinaryCost",
    "Calibration",
    "Cascade",
    "ClassificationCost",
    "Committee",
    "Comparison",
    "Confidence",
    "ConfidenceNetwork",
    "CostRule",
    "CostSelector",
    "Costs",
    "Dynamic",
    "FeatureNetwork",
    "FitHistory",
    "Forecast",
    "Input",
    "LogProbDeviation",
    "Outcomes",
    "OutputDeviation",
    "PenaltyChoice",
    "PenaltyTrial",
    "PolicyScore",
    "PooledNetwork",
    "ProbabilityShift",
    "Profile",
    "RandomSelector",
    "Report",
    "Risk",
    "RiskCost",
    "SettingTest",
    "StateNetwork",
    "TaskErrorCost",
    "adapt",
    "assignment_score",
    "calibrate",
    "calibration_error",
    "channel_means",
    "choose_penalty",
    "closed_gap_fraction",
    "collect_costs",
    "concatenate_state",
    "contains_block",
    "count_macs",
    "cross_fit",
    "diagnose",
    "disagreement",
    "equivalent_dial",
    "exact_binomial",
    "export_policy",
    "find_block",
    "find_head",
    "fit_forecast",
    "hoeffding_bentkus",
    "load_policy",
    "loss_bound",
    "lost_accuracy",
    "make_dynamic",
    "nfe_with_overhead",
    "oracle",
    "oracle_choice",
    "pareto_front",
    "profile_candidates",
    "prune",
    "random_mix",
    "run_candidates",
    "samples_needed",
    "save_policy",
    "selector_choice",
    "single_candidate",
    "time_side_by_side",
]
