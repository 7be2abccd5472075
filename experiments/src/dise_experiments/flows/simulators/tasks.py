"""The benchmark's tasks by name."""

from collections.abc import Mapping

from dise_experiments.flows.simulators.bernoulli_glm import BERNOULLI_GLM
from dise_experiments.flows.simulators.gaussian_linear import GAUSSIAN_LINEAR, GAUSSIAN_LINEAR_UNIFORM
from dise_experiments.flows.simulators.gaussian_mixture import GAUSSIAN_MIXTURE
from dise_experiments.flows.simulators.lotka_volterra import LOTKA_VOLTERRA
from dise_experiments.flows.simulators.simulator import Simulator
from dise_experiments.flows.simulators.sir import SIR
from dise_experiments.flows.simulators.slcp import SLCP
from dise_experiments.flows.simulators.two_moons import TWO_MOONS

_ALL = (
    TWO_MOONS,
    SLCP,
    GAUSSIAN_MIXTURE,
    BERNOULLI_GLM,
    GAUSSIAN_LINEAR,
    GAUSSIAN_LINEAR_UNIFORM,
    SIR,
    LOTKA_VOLTERRA,
)
SIMULATORS: Mapping[str, Simulator] = {simulator.name: simulator for simulator in _ALL}
