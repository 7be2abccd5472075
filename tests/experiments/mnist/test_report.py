"""Tables of runs whose numbers are made up."""

import pytest

from dise_experiments.common.task import Run
from dise_experiments.mnist.report import model_table, own_row, policy_table, table_1, table_3


def ode_rows(accuracy, nfe, **more):
    """The candidates, a baseline, and two selectors."""
    return [
        {"policy": "Euler", "accuracy": 0.5, "nfe": 1.0, "nfe_batch": 1.0},
        {"policy": "RK4", "accuracy": 0.7, "nfe": 4.0, "nfe_batch": 4.0},
        {"policy": "Dopri5", "accuracy": accuracy, "nfe": nfe, "nfe_batch": nfe + 1}
        | {"mcnemar": {"only_first": 0, "only_second": 0, "difference": 0.0, "p": 1.0}},
        {"policy": "Dopri5(first_step=span)", "accuracy": accuracy, "nfe": nfe / 2, "nfe_batch": 11.0},
        {"policy": "oracle", "accuracy": 1.0, "nfe": 1.5},
        {"policy": "DISE (paper)", "accuracy": 0.8, "nfe": 3.25, "nfe_batch": 14.0, "selector_macs": 1.97}
        | {"shares": {"Euler": 0.25, "RK4": 0.75, "Dopri5": 0.0}},
        {"policy": "DISE (pooled)", "accuracy": 0.85, "nfe": 2.5, "nfe_batch": 14.0, "selector_macs": 0.003}
        | {"shares": {"Euler": 0.5, "RK4": 0.5, "Dopri5": 0.0}}
        | {"mcnemar": {"only_first": 4, "only_second": 1, "difference": -0.15, "p": 0.375}},
        {"policy": "random, mix of pooled", "accuracy": 0.6, "nfe": 2.5},
    ]


def run(model="odenet", reg="none", seed=0, *, name=None, accuracy=0.7, nfe=20.0, wrong=(), rows=None):
    metrics = {"samples": 20, "wrong": list(wrong), "policies": rows or ode_rows(accuracy, nfe)}
    return Run(name or f"{model}-{reg}-seed{seed}", model, reg, 0.0, seed, metrics, {}, None)


RESNET = run("resnet", rows=[{"policy": "no ODE", "accuracy": 0.9}], wrong=[0, 1])


def cells(table, row):
    return dict(zip(table.header, row, strict=True))


@pytest.mark.parametrize(
    ("one", "policy"), [(run(), "Dopri5"), (run("rknet"), "RK4"), (RESNET, "no ODE")], ids=["odenet", "rknet", "resnet"]
)
def test_own_is_the_integrator_that_the_model_was_trained_with(one, policy):
    assert own_row(one)["policy"] == policy


# ---- Table 1


def test_table_1_has_the_papers_numbers_in_its_order():
    table = table_1([run(reg="error")])
    paper = list(dict.fromkeys(tuple(row[:3]) for row in table.rows))
    assert paper == [
        ("ResNet", "0.9959", "–"),
        ("RKNet", "0.9953", "–"),
        ("No reg.", "0.9960", "26.00"),
        ("Kinetic energy reg.", "0.9965", "20.00"),
        ("L1 reg.", "0.9956", "20.00"),
        ("L2 reg.", "0.9961", "20.00"),
        ("Our reg.", "0.9964", "14.00"),
        ("No reg. & DISE", "0.9958", "11.36"),
        ("Our reg. & DISE", "0.9963", "5.79"),
    ]


def test_table_1_has_our_numbers_beside_the_papers():
    table = table_1([run(reg="error", name="r", accuracy=0.75, nfe=20.125)])
    found = [row for row in table.rows if "not run" not in row]
    assert found == [
        ["Our reg.", "0.9964", "14.00", "r", "0.7500", "20.12", "–", "21.12"],
        ["Our reg. & DISE", "0.9963", "5.79", "r, (paper)", "0.8000", "3.25", "1.97", "14.00"],
        ["Our reg. & DISE", "0.9963", "5.79", "r, (pooled)", "0.8500", "2.50", "0.00", "14.00"],
    ]
    assert table.rows[0] == ["ResNet", "0.9959", "–", "not run", "–", "–", "–", "–"]


def test_table_1_has_every_run_of_a_row():
    table = table_1([run(seed=0), run(seed=1), RESNET])
    assert [cells(table, row)["run"] for row in table.rows[:4]] == [
        "resnet-none-seed0",
        "not run",
        "odenet-none-seed0",
        "odenet-none-seed1",
    ]
    assert cells(table, table.rows[0])["NFE per sample"] == "–"


# ---- Table 3


def test_table_3_has_the_papers_shares_and_ours():
    table = table_3([run(name="r"), RESNET])
    assert table.header == ["run", "Dopri5", "RK4", "Euler"]
    assert table.rows == [
        ["paper: Our reg. & DISE", "37%", "34%", "29%"],
        ["r, DISE (paper)", "0.0%", "75.0%", "25.0%"],
        ["r, DISE (pooled)", "0.0%", "50.0%", "50.0%"],
    ]


# ---- models in pairs

PLAIN = run(accuracy=0.7, nfe=26.0, wrong=[1, 2, 3, 4, 5, 6])


def test_the_plain_model_is_not_compared_with_itself():
    (row,) = model_table([PLAIN]).rows
    assert row == ["odenet-none-seed0", "0.7000", "26.00", "13.00", "–", "–"]


def test_models_are_compared_on_the_same_images():
    # plain alone is right at 7, the other alone at 2, 3, 4, 5, 6: 2·(1 + 6)/2⁶
    other = run(reg="error", accuracy=0.9, nfe=14.0, wrong=[1, 7])
    table = model_table([PLAIN, other])
    assert cells(table, table.rows[1]) == {
        "run": "odenet-error-seed0",
        "accuracy": "0.9000",
        "NFE per sample": "14.00",
        "NFE, first step span": "7.00",
        "difference, points": "+20.00",
        "McNemar": "1 / 5, p = 0.219",
    }


def test_the_order_of_the_runs_does_not_matter():
    worse = run(reg="error", wrong=[1, 2, 3, 4, 5, 6, 7, 8])
    assert [row[-2:] for row in model_table([worse, PLAIN]).rows] == [["-10.00", "2 / 0, p = 0.5"], ["–", "–"]]


def test_equal_models():
    assert model_table([PLAIN, run(reg="l2", wrong=[6, 5, 4, 3, 2, 1])]).rows[1][-2:] == ["+0.00", "0 / 0, p = 1"]


def test_each_model_is_compared_with_the_plain_one_of_its_seed():
    runs = [PLAIN, run(seed=1, wrong=[0]), run(reg="error", seed=1, wrong=[0, 1]), run(reg="error", seed=2, wrong=[0])]
    # seed 2 has no plain ODE-Net
    assert [row[-1] for row in model_table(runs).rows] == ["–", "–", "1 / 0, p = 1", "–"]
    assert [row[-2] for row in model_table(runs).rows] == ["–", "–", "-5.00", "–"]


def test_baselines_are_compared_with_their_own_integrator():
    table = model_table([PLAIN, RESNET, run("rknet", wrong=[1, 2, 3])])
    # ResNet: wrong at 0 and 1; plain alone is right at 0, ResNet alone at 2 to 6
    assert table.rows[1] == ["resnet-none-seed0", "0.9000", "–", "–", "+20.00", "1 / 5, p = 0.219"]
    assert table.rows[2] == ["rknet-none-seed0", "0.7000", "4.00", "10.00", "+15.00", "0 / 3, p = 0.25"]


@pytest.mark.parametrize("name", ["rknet", "resnet"])
def test_a_baseline_is_not_the_plain_ode_net(name):
    baseline = RESNET if name == "resnet" else run("rknet")
    assert [row[-1] for row in model_table([baseline, run(reg="error")]).rows] == ["–", "–"]


# ---- all policies


def test_every_policy_with_what_it_costs():
    table = policy_table(run(name="r"))
    assert table.title == "r: all policies"
    assert [cells(table, row)["policy"] for row in table.rows] == [row["policy"] for row in run().policies()]
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["oracle"] == ["1.0000", "1.50", "1.50", "–", "–"]
    assert rows["Dopri5"] == ["0.7000", "20.00", "20.00", "21.00", "0 / 0, p = 1"]
    # the selector's evaluations beside the solver's
    assert rows["DISE (paper)"] == ["0.8000", "3.25", "5.22", "14.00", "–"]
    assert rows["DISE (pooled)"] == ["0.8500", "2.50", "2.50", "14.00", "4 / 1, p = 0.375"]


def test_the_one_policy_of_a_resnet():
    assert policy_table(RESNET).rows == [["no ODE", "0.9000", "–", "–", "–", "–"]]
