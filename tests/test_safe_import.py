"""Eager use of the library where private parts of torch, its compiler among them, cannot be imported."""

import json
import subprocess
import sys

import pytest

BLOCKED = ("torch._inductor", "torch._dynamo", "torch._higher_order_ops", "torch._functorch")

# torch itself loads some of them; from here on they are not there
PREAMBLE = f"""
import sys
import torch
from torch import nn

blocked = {BLOCKED}

def is_blocked(name):
    return any(name == root or name.startswith(root + ".") for root in blocked)

class Finder:
    def find_spec(self, name, path=None, target=None):
        if is_blocked(name):
            raise ImportError(f"blocked: {{name}}")

for name in [name for name in sys.modules if is_blocked(name)]:
    del sys.modules[name]
for root in blocked:
    vars(torch).pop(root.removeprefix("torch."), None)
sys.meta_path.insert(0, Finder())
torch.manual_seed(0)

class Field(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, t, y):
        return torch.tanh(self.linear(y)) + t
"""

SCRIPTS = {
    "import": "import dise",
    "solve, adaptive": """
import dise
y = dise.solve(lambda t, y: -y, torch.ones(3, 2, dtype=torch.float64), 0.0, 1.0, dise.Dopri5(rtol=1e-9, atol=1e-9)).y
assert torch.allclose(y, torch.full_like(y, -1).exp(), rtol=1e-8)
""",
    "solve, fixed steps": """
import dise
y = dise.solve(lambda t, y: -y, torch.ones(3, 2, dtype=torch.float64), 0.0, 1.0, dise.Euler(1)).y
assert bool((y == 0).all())
""",
    "save points and dense output": """
import dise
times = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
y0, how = torch.ones(3, 1, dtype=torch.float64), dise.Dopri5(rtol=1e-9, atol=1e-9)
solution = dise.solve(lambda t, y: -y, y0, 0.0, 1.0, how, save_at=times, dense=True, record=True)
assert torch.allclose(solution.saved[..., 0], (-times).exp().expand(3, 3), rtol=1e-6)
assert torch.allclose(solution.evaluate(0.5)[:, 0], (-times[1]).exp().expand(3), rtol=1e-6)
""",
    "event": """
import dise
y0, how = torch.ones(3, 1, dtype=torch.float64), dise.Dopri5(rtol=1e-9, atol=1e-9)
solution = dise.solve(lambda t, y: -y, y0, 0.0, 9.0, how, event=lambda t, y: y[:, 0] - 0.5)
assert torch.allclose(solution.t, torch.full_like(solution.t, 2).log(), rtol=1e-6)
""",
    "gradients": """
import dise
for gradient in ("direct", "backsolve"):
    y0 = torch.ones(3, 1, dtype=torch.float64, requires_grad=True)
    solution = dise.solve(lambda t, y: -y, y0, 0.0, 1.0, dise.Dopri5(rtol=1e-9, atol=1e-9), gradient=gradient)
    solution.y.sum().backward()
    assert torch.allclose(y0.grad, torch.full_like(y0, -1).exp(), rtol=1e-6)
""",
    "step and resume": """
import dise
f, y0 = lambda t, y: -y, torch.ones(3, 1, dtype=torch.float64)
assert dise.step(f, 0.0, y0, 0.1, dise.Dopri5()).accept.all()
solution = dise.resume(dise.solve(f, y0, 0.0, 0.5, dise.Dopri5()), f, 1.0, dise.Dopri5())
assert torch.allclose(solution.y, torch.full_like(y0, -1).exp(), rtol=1e-3)
""",
    "NeuralODE": """
import dise
block = dise.NeuralODE(Field(), dise.Dopri5())
block(torch.ones(3, 2)).sum().backward()
assert block.f.linear.weight.grad.isfinite().all()
""",
    "torchdiffeq": """
from dise.torchdiffeq import odeint
y = odeint(lambda t, y: -y, torch.ones(2, dtype=torch.float64), torch.tensor([0.0, 1.0], dtype=torch.float64))
assert torch.allclose(y[-1], torch.full_like(y[-1], -1).exp(), rtol=1e-6)
""",
    "make_dynamic": """
import dise
model = nn.Sequential(dise.NeuralODE(Field(), dise.Dopri5(rtol=1e-5, atol=1e-5)), nn.Linear(2, 3)).eval()
dynamic = dise.make_dynamic(model, [torch.randn(400, 2)], epsilon=0.05, candidates=(dise.Euler(1), dise.RK4(1)))
assert dynamic(torch.randn(5, 2)).shape == (5, 3)
""",
}


# all in one process, since importing torch takes longer than they do
RUN_ALL = f"""
import json, traceback
failures = {{}}
for name, script in {SCRIPTS!r}.items():
    try:
        exec(script, {{"torch": torch, "nn": nn, "Field": Field}})
    except Exception:
        failures[name] = traceback.format_exc()
print(json.dumps(failures))
"""


@pytest.fixture(scope="module")
def failures():
    """The traceback of each script that failed."""
    run = subprocess.run([sys.executable, "-c", PREAMBLE + RUN_ALL], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize("name", SCRIPTS)
def test_works_without_private_parts_of_torch(name, failures):
    assert name not in failures, failures[name]


def test_import_takes_no_part_of_the_compiler():
    """`import dise` loads none of torch's modules for compilation beyond those that `import torch` loads."""
    script = f"""
import sys
import torch
before = set(sys.modules)
import dise, dise.torchdiffeq
new = sorted(name for name in set(sys.modules) - before if name.startswith({BLOCKED}))
assert not new, new
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr


LATER = [
    "dise.flow",
    "dise.select",
    "dise.nn",
    "dise.regularize",
    "dise.integrate.adjoint",
    "dise.integrate.backward_solve",
    "dise.integrate.multistep_method",
    "dise.integrate.adams_method",
    "dise.integrate.one_step",
]


def test_what_a_solve_does_not_need_is_imported_when_it_is_used():
    """`import dise` is quick because it leaves it out; all public names are there nevertheless."""
    script = f"""
import sys
import torch
import dise
later = set({LATER})
dise.solve(lambda t, y: -y, torch.ones(3, 2), 0.0, 1.0, dise.Dopri5())
assert not later & set(sys.modules), later & set(sys.modules)
packages = {{"dise.nn", "dise.regularize", "dise.flow", "dise.select"}}
assert {{name.removeprefix("dise.") for name in packages}} <= set(dir(dise))
for package in (dise, dise.integrate):
    assert set(package.__all__) <= set(dir(package))
    assert all(hasattr(package, name) for name in package.__all__)
    namespace = {{}}
    exec(f"from {{package.__name__}} import *", namespace)
    assert set(package.__all__) <= set(namespace)
assert packages <= set(sys.modules)
assert dise.nn.NeuralODE is dise.NeuralODE
assert dise.regularize.L1 is dise.L1
assert dise.flow.Flow is dise.Flow
assert dise.select.calibrate is dise.calibrate
assert callable(dise.step) and callable(dise.resume) and callable(dise.integrate.resume)
for package in (dise, dise.integrate):
    try:
        package.no_such_name
    except AttributeError as error:
        assert f"module '{{package.__name__}}' has no attribute 'no_such_name'" == str(error)
    else:
        raise AssertionError
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
