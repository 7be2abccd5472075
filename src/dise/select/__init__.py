"""Which integrator each sample gets."""

from dise.select.cost import ClassificationCost, Costs, Outcomes, collect_costs, find_block, run_candidates
from dise.select.diagnose import diagnose
from dise.select.dynamic import Dynamic
from dise.select.evaluate import PolicyScore, oracle, random_mix, single
from dise.select.selector import CostSelector, Fit, PooledNetwork

__all__ = [
    "ClassificationCost",
    "CostSelector",
    "Costs",
    "Dynamic",
    "Fit",
    "Outcomes",
    "PolicyScore",
    "PooledNetwork",
    "collect_costs",
    "diagnose",
    "find_block",
    "oracle",
    "random_mix",
    "run_candidates",
    "single",
]
