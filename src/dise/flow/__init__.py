"""Continuous normalizing flows: densities of data, and samples, from an ordinary differential equation.

Points z move with dz/dt = f(t, z) from a base distribution at t0 to the data at t1. Along their path the density
changes by d log p(z(t))/dt = −div f(t, z(t)), so that

    log p(x) = log p_base(z(t0)) − ∫ div f dt over [t0, t1], where z(t1) = x.

Sources: Chen, Rubanova, Bettencourt, Duvenaud, Neural Ordinary Differential Equations, 2018, section 4 (Theorem 1);
Grathwohl et al., FFJORD, 2019; conventions as in torchdiffeq's `examples/cnf.py`.
"""

from dise.flow.base import BaseDistribution, DiagonalNormal
from dise.flow.certified.make_sampler import make_sampler
from dise.flow.density import FlowDensity
from dise.flow.divergences import AugmentedField, Divergence, ExactDivergence, HutchinsonDivergence, divergence
from dise.flow.fitting.errors import SolverErrors
from dise.flow.fitting.fit_solver import fit_solver
from dise.flow.fitting.report import SolverFit
from dise.flow.flow import ConditionedFlow, Flow
from dise.flow.guidance import Guided, ModelCalls
from dise.flow.paths import CosinePath, StraightPath, VarianceExplodingPath, VariancePreservingPath
from dise.flow.point_regularizer import PointRegularizer, TransportCost
from dise.flow.prediction import PathField
from dise.flow.sampler import FlowSampler
from dise.flow.sharp_grid import sharp_grid

__all__ = [
    "AugmentedField",
    "BaseDistribution",
    "ConditionedFlow",
    "CosinePath",
    "DiagonalNormal",
    "Divergence",
    "ExactDivergence",
    "Flow",
    "FlowDensity",
    "FlowSampler",
    "Guided",
    "HutchinsonDivergence",
    "ModelCalls",
    "PathField",
    "PointRegularizer",
    "SolverErrors",
    "SolverFit",
    "StraightPath",
    "TransportCost",
    "VarianceExplodingPath",
    "VariancePreservingPath",
    "divergence",
    "fit_solver",
    "make_sampler",
    "sharp_grid",
]
