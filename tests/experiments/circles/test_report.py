"""Tables of runs whose numbers are made up (`run` of conftest.py)."""

import pytest

from dise_experiments.circles.report import (
    larger_test,
    other_shares,
    other_targets,
    own_row,
    policy_table,
    seed_table,
    table_8,
    table_9,
)

MEASURES = ["run", "NLL", "by reference", "NFE, 16 batches", "with selector", "NFE per row"]
TIGHT = "Dopri5(rtol=1e-05, atol=1e-05)"


def ours(table):
    """Rows of runs."""
    return [row for row in table.rows if "not run" not in row]


def cells(table, row):
    return dict(zip(table.header, row, strict=True))


def well_formed(table):
    assert all(len(row) == len(table.header) for row in table.rows)
    assert all(isinstance(cell, str) for row in table.rows for cell in row)
    return table


def test_own_is_the_integrator_of_the_training_for_a_set(run):
    row = own_row(run(nll=0.875))
    assert (row["policy"], row["unit"], row["small"]["nll"]) == (TIGHT, "set", 0.875)


# ---- Table 8


def test_table_8_has_the_papers_numbers_in_its_order(run):
    table = well_formed(table_8([run("error")]))
    assert list(dict.fromkeys(tuple(row[:3]) for row in table.rows)) == [
        ("No reg.", "0.8911", "2297"),
        ("Kinetic energy reg.", "0.8914", "2286"),
        ("L1 reg.", "0.8901", "2259"),
        ("L2 reg.", "0.8760", "2904"),
        ("Our reg.", "0.8841", "2166"),
        ("No reg. & DISE", "0.8883", "2104"),
        ("Our reg. & DISE", "0.8742", "1984"),
    ]
    assert list(table.header) == ["model", "paper: NLP", "paper: NFE", *MEASURES]


def test_table_8_has_our_numbers_beside_the_papers(run):
    table = table_8([run("error", nll=0.875, nfe=150.0)])
    paper, with_dise = ["Our reg.", "0.8841", "2166"], ["Our reg. & DISE", "0.8742", "1984"]
    assert ours(table) == [
        # 16 batches of 150
        [*paper, "flow-error-seed0", "0.8750", "0.8750", "2400", "2400", "150.0"],
        # 0.0625 above the reference; 16 · 0.2959 = 4.7 for the selector
        [*with_dise, "flow-error-seed0, set", "0.9375", "0.8750", "1024", "1029", "64.0"],
        # a point's NFE does not add up over batches
        [*with_dise, "flow-error-seed0, point", "0.8750", "0.8750", "–", "–", "32.2"],
    ]
    assert table.rows[0] == ["No reg.", "0.8911", "2297", "not run", *["–"] * 5]


def test_the_larger_test_has_every_run(run):
    table = well_formed(larger_test([run("error", nll=0.875, nfe=150.0), run("raw-error", dise=False)]))
    assert table.header == ["run", "NLL", "by reference", "NFE per row"]
    assert table.rows == [
        # 0.1 and 1 NFE above the small test
        ["flow-error-seed0", "0.9750", "0.9750", "151.0"],
        ["flow-error-seed0, set", "1.0375", "1.0375", "65.0"],
        # 0.5 below the reference, hence *
        ["flow-error-seed0, point", "0.9750*", "1.4750", "33.2"],
        ["flow-raw-error-seed0", "0.9750", "0.9750", "151.0"],
    ]


@pytest.mark.parametrize(("part", "table"), [("small", other_targets), ("large", larger_test)])
def test_a_likelihood_that_the_model_does_not_have_has_an_asterisk(run, part, table):
    one = run(target="moons", dise=False)
    own_row(one)[part]["flagged"] = True
    made = {table: table([one]) for table in (other_targets, larger_test)}
    for other, (row,) in ((table, made[table].rows) for table in made):
        assert [name for name, cell in cells(made[other], row).items() if "*" in cell] == ["NLL"] * (other is table)
    assert "* better than the reference" in made[other_targets].note


def test_table_8_has_every_run_of_a_row(run):
    table = table_8([run(seed=0), run(seed=1), run("l2")])
    names = [cells(table, row)["run"] for row in table.rows]
    assert names == [
        *("flow-none-seed0", "flow-none-seed1", "not run", "not run", "flow-l2-seed0", "not run"),
        *("flow-none-seed0, set", "flow-none-seed0, point", "flow-none-seed1, set", "flow-none-seed1, point"),
        "not run",
    ]


def test_table_8_keeps_the_papers_row_of_a_run_without_selectors(run):
    table = well_formed(table_8([run("none", dise=False)]))
    assert [cells(table, row)["run"] for row in table.rows if "No reg." in row[0]] == ["flow-none-seed0", "not run"]


def test_a_regularizer_that_the_paper_does_not_have_is_not_in_table_8(run):
    assert ours(table_8([run("raw-error")])) == []


# ---- Table 9


def test_table_9_has_the_papers_shares_and_ours(run):
    table = well_formed(table_9([run()]))
    assert list(table.header) == ["run", "Dopri5", "RK4", "Euler", "Midpoint"]
    assert table.rows == [
        ["paper: DISE", "87.5%", "0.0%", "12.5%", "–"],
        # 0.5 and 0.125 of the same family
        ["flow-none-seed0, DISE (set)", "62.5%", "25.0%", "0.0%", "12.5%"],
        ["flow-none-seed0, DISE (point)", "0.0%", "0.0%", "100.0%", "0.0%"],
    ]


def test_table_9_of_a_run_without_selectors(run):
    table = well_formed(table_9([run(dise=False), run(seed=1)]))
    assert [row[0] for row in table.rows] == [
        "paper: DISE",
        "flow-none-seed1, DISE (set)",
        "flow-none-seed1, DISE (point)",
    ]
    assert table_9([run(dise=False)]).header == ["run", "Dopri5", "RK4", "Euler"]


# ---- targets that the paper does not have


def test_other_targets_do_not_stand_beside_the_papers_numbers(run):
    table = well_formed(other_targets([run(target="moons"), run("error", target="pinwheel", dise=False)]))
    assert list(table.header) == ["target", *MEASURES]
    assert [row[:3] for row in table.rows] == [
        ["moons", "flow-none-seed0", "0.8750"],
        ["moons", "flow-none-seed0, set", "0.9375"],
        ["moons", "flow-none-seed0, point", "0.8750"],
        ["pinwheel", "flow-error-seed0", "0.8750"],
    ]
    assert table.rows[0][2:] == table_8([run()]).rows[0][4:]
    assert "paper" not in table.markdown()


def test_shares_of_other_targets(run):
    table = well_formed(other_shares([run(target="moons")]))
    assert table.header == ["run", "Dopri5", "Euler", "Midpoint", "RK4"]
    assert table.rows == [
        ["flow-none-seed0, DISE (set)", "62.5%", "0.0%", "12.5%", "25.0%"],
        ["flow-none-seed0, DISE (point)", "0.0%", "100.0%", "0.0%", "0.0%"],
    ]


# ---- over seeds


def test_means_over_seeds(run):
    runs = [run(seed=seed, nll=nll, nfe=nfe) for seed, nll, nfe in [(0, 0.5, 100), (1, 0.6, 110), (10, 0.7, 150)]]
    table = well_formed(seed_table(runs))
    # the large test is at 0.1 and 1 NFE more; of 0, 0.1, 0.2 the deviation is 0.1, of 100, 110, 150 √700
    assert table.rows == [["flow-none", "3", "0.7000 ± 0.1000", "121.0 ± 26.5"]]


def test_one_seed_has_no_deviation(run):
    assert seed_table([run("l1")]).rows == [["flow-l1", "1", "0.9750", "151.0"]]


def test_runs_are_grouped_by_everything_but_the_seed(run):
    names = ["flow-none-seed0", "flow-error-0.5-seed0", "flow-none-target=moons-seed0", "flow-none-seed12"]
    table = seed_table([run(name=name) for name in names])
    assert [row[:2] for row in table.rows] == [
        ["flow-none", "2"],
        ["flow-error-0.5", "1"],
        ["flow-none-target=moons", "1"],
    ]


# ---- all policies


def test_every_policy_of_a_run(run):
    one = run(nll=0.875, nfe=150.0, name="r")
    table = well_formed(policy_table(one))
    assert table.title == "r: all policies"
    assert [row[0] for row in table.rows] == [f"{row['policy']}, per {row['unit']}" for row in one.policies()]
    rows = {row[0]: row[1:] for row in table.rows}
    # NLL, its distance, NFE of 16 batches; NLL, distance, largest distance and NFE of the large test; selector; flag
    assert rows["RK4(steps=5), per set"] == [
        *("1.1250", "+0.2500", "320", "1.2250", "+0.5000", "1.000", "21.0", "–", ""),
    ]
    assert rows["Midpoint, per set"] == [
        *("0.3750", "-0.5000", "32", "0.4750", "-0.2500", "0.500", "3.0", "–"),
        "better than the reference (small, large)",
    ]
    assert rows["DISE (point), per point"] == [
        *("0.8750", "+0.0000", "–", "0.9750", "-0.5000", "1.000", "33.2", "0.167"),
        "better than the reference (large)",
    ]
    assert "better" in table.note


def test_every_policy_of_a_run_without_selectors(run):
    table = well_formed(policy_table(run(dise=False)))
    assert len(table.rows) == 5
    assert not any("DISE" in row[0] for row in table.rows)


@pytest.mark.parametrize("table", [table_8, table_9, seed_table, larger_test, other_targets, other_shares])
def test_tables_are_written_in_markdown(run, table):
    made = table([run(), run("error", seed=1)])
    lines = made.markdown().splitlines()
    assert lines[0] == f"## {made.title}"
    assert sum(line.startswith("| ") for line in lines) == 2 + len(made.rows)
