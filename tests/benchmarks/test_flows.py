"""The benchmark of samplers: its rows are computed right on small problems; it writes JSON and the table."""

import json
import math
import runpy
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import nn

import dise

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _path(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))


def module(name):
    return import_module(f"flow_bars.{name}")


class Rotation(nn.Module):
    """y' = ω J y with ω per draw: a turn by ω until t = 1."""

    def forward(self, t, y, speed):
        return speed[:, None] * torch.stack([-y[:, 1], y[:, 0]], dim=1)


def rotations(n):
    generator = torch.Generator().manual_seed(0)
    return module("fields").Draws(
        Rotation(), torch.randn(n, 2, generator=generator), (3 * torch.rand(n, generator=generator),)
    )


def test_the_scan_finds_the_cheapest_adequate_tolerance():
    draws = rotations(20)
    z, angle = draws.noise, draws.conditions[0]
    turned = torch.stack(
        [z[:, 0] * angle.cos() - z[:, 1] * angle.sin(), z[:, 0] * angle.sin() + z[:, 1] * angle.cos()], 1
    )
    family = lambda tol: dise.Bosh3(rtol=tol, atol=tol)  # noqa: E731
    found = module("draws").scan(draws, turned, family)
    assert found[0.01]["nfe"] >= found[0.03]["nfe"]
    for tau, row in found.items():
        solution = draws.solve(family(row["tolerance"]))
        assert row["nfe"] == float(solution.nfe.double().mean())
        assert float(torch.quantile((solution.y - turned).square().mean(1).sqrt(), 0.99)) <= tau
        looser = draws.solve(family(8 * row["tolerance"])).y
        assert float(torch.quantile((looser - turned).square().mean(1).sqrt(), 0.99)) > tau


def test_a_family_that_never_is_adequate_has_no_row():
    draws = rotations(4)
    wrong = draws.noise + 100
    assert module("draws").scan(draws, wrong, lambda tol: dise.Bosh3(rtol=max(tol, 1.0), atol=1.0)) == {}


def test_evaluations_at_a_psnr_are_interpolated_in_their_logarithm():
    at = module("images").evaluations_at
    assert at(40.0, {8: 30.0, 16: 50.0}) == pytest.approx(8 * math.sqrt(2))
    assert at(30.0, {4: 20.0, 8: 30.0, 16: 50.0}) == pytest.approx(8)
    assert at(60.0, {8: 30.0, 16: 50.0}) is None


def test_psnr_is_the_mean_over_draws():
    y = torch.zeros(2, 1, 4, 4)
    reference = y + torch.tensor([0.02, 0.2]).reshape(2, 1, 1, 1)
    assert module("images").psnr(y, reference) == pytest.approx((40 + 20) / 2, abs=1e-4)


def test_random_grids_are_halved_step_by_step():
    order = module("order")
    grid = order.random_grid(5, seed=1)
    halves = order.halved(grid)
    assert halves.fractions[::2] == grid.fractions
    assert halves.steps == 10


def test_committed_fields_make_draws():
    draws = module("fields").points("two_moons", 3)
    assert draws.solve(dise.Euler(2)).y.shape == (3, 2)
    assert module("fields").digits(2).solve(dise.Euler(1)).y.shape == (2, 1, 28, 28)


def test_rows_are_measured_kept_and_written(tmp_path, monkeypatch, capsys):
    out, page = tmp_path / "flows.json", tmp_path / "README.md"
    out.write_text(json.dumps({"order": {"text": "as before", "holds": False}}))
    script = runpy.run_path(str(FOLDER / "flows.py"))
    monkeypatch.setattr(module("parity"), "measure", lambda: module("seen").Seen("3e-7", True, {"Euler": 3e-7}))
    monkeypatch.setattr(sys, "argv", ["flows.py", "--only", "parity", "--out", str(out)])
    script["main"]()
    found = json.loads(out.read_text())
    assert found["parity"]["numbers"] == {"Euler": 3e-7}
    assert found["order"]["text"] == "as before"
    assert "parity: 3e-7" in capsys.readouterr().out
    readme = import_module("readme")
    begin, end = readme.marks("flows.py")
    page.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    monkeypatch.setattr(readme, "PAGE", page)
    monkeypatch.setattr(sys, "argv", ["flows.py", "--out", str(out), "--readme"])
    script["main"]()
    text = page.read_text()
    assert "as before | **no** |" in text
    assert "not measured | – |" in text
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "\nold\n" not in text


def test_a_table_needs_measurements(monkeypatch, capsys):
    script = runpy.run_path(str(FOLDER / "flows.py"))
    monkeypatch.setattr(sys, "argv", ["flows.py", "--readme"])
    with pytest.raises(SystemExit):
        script["main"]()
    assert "--out" in capsys.readouterr().err


@pytest.mark.parametrize(("dim", "components"), [(1, 1), (2, 5)])
def test_closed_form_fields_carry_the_base_to_their_density(dim, components):
    f = module("density").MixtureField(dim, components)
    x = f.draw(5)
    ones = torch.ones(dim, dtype=torch.float64)
    flow = dise.Flow(f, dise.DiagonalNormal(0 * ones, ones), dise.Dopri5(rtol=1e-6, atol=1e-6))
    with torch.no_grad():
        torch.testing.assert_close(flow.log_prob(x), f.log_prob(x), rtol=0, atol=1e-4)


def test_a_gaussian_fields_density_is_torchs():
    f = module("density").MixtureField(3, 1)
    expected = torch.distributions.Normal(f.centres[0], f.variances.sqrt())
    x = f.draw(10)
    torch.testing.assert_close(f.log_prob(x), expected.log_prob(x).sum(1))


def test_the_loosest_adequate_tolerance():
    density = module("density")
    exact = torch.zeros(3)
    found = density._loosest(lambda tol: exact + tol, exact)
    assert found["tolerance"] == pytest.approx(1e-5)
    assert density._loosest(lambda tol: exact + 1, exact) is None
