"""Shared by all tests. Test modules are imported by path (importlib mode), so what they share comes as fixtures."""

import os

import check_shapes
import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from torch import nn

check_shapes.install()

# Fuzzers are tests marked `fuzz` without a number of examples of their own. "ci" draws the same few in every run;
# `make fuzz` loads "long", which draws new ones.
settings.register_profile(
    "ci",
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    phases=(Phase.explicit, Phase.generate),  # a failure is shown at once, as it was drawn
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.register_profile(
    "long", settings.get_profile("ci"), max_examples=10_000, derandomize=False, print_blob=True, phases=tuple(Phase)
)
settings.load_profile("ci")

os.environ.pop("COLUMNS", None)  # of pytest-xdist; the command line's consoles would keep it, whatever tests set


def pytest_collection_modifyitems(items):
    """Refuse test ids with addresses: processes that share the tests would not agree on them."""
    addresses = [item.nodeid for item in items if " at 0x" in item.nodeid]
    if addresses:
        raise pytest.UsageError(f"name the parameters of {addresses[0]} by ids=")


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def same_draws():
    """A test that passes once passes in every run."""
    check_shapes.start_test()
    torch.manual_seed(0)


class Recorder:
    """A vector field that remembers each of its calls: [n] times and n rows."""

    def __init__(self, f):
        self.f, self.times = f, []
        from dise.integrate.problem.row_check import remember  # here, since `check_shapes` comes before dise

        remember(self, ())  # passes the check for mixed rows, which would be one more call

    def __call__(self, t, y, *args):
        self.times.append(torch.as_tensor(t).detach().flatten())
        return self.f(t, y, *args)

    @property
    def calls(self):
        return len(self.times)

    @property
    def rows(self):
        return sum(len(t) for t in self.times)


class TanhField(nn.Module):
    """dy/dt = tanh(W y + b + c t), y [n, size]; rows are computed alike whatever stands beside them."""

    def __init__(self, size=3, *, scale=2.0, seed=0, dtype=torch.float64):
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.W, self.b, self.c = (
            nn.Parameter(scale * torch.randn(*shape, generator=draw, dtype=dtype))
            for shape in ((size, size), (size,), (size,))
        )

    def forward(self, t, y):
        return torch.tanh((y[:, None, :] * self.W).sum(2) + self.b + self.c * t)


@pytest.fixture(scope="session")
def record():
    """record(f): f, with its calls counted."""
    return Recorder


@pytest.fixture(scope="session")
def tanh_field():
    """tanh_field(size, scale=, seed=, dtype=): a nonlinear, time-dependent field."""
    return TanhField


@pytest.fixture(scope="session")
def starts():
    """starts(B, ..., seed=, dtype=): initial states of samples that need different numbers of steps."""

    def draw(*shape, seed=0, dtype=torch.float64):
        y0 = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
        return y0 * torch.logspace(-1, 1, shape[0], dtype=dtype).view(-1, *(1 for _ in shape[1:]))

    return draw
