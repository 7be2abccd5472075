"""Tables of runs whose numbers are made up (`run` of conftest.py)."""

import pytest

from dise_experiments.physionet.report import against_dopri, own_row, policy_tables, seed_table, table_5, table_6
from dise_experiments.physionet.task import PhysionetTask

MEASURES = ["run", "AUROC", "95 %", "NFE per record", "selector (in f)", "NFE per batch", "AUROC, set b", "95 %, set b"]


def ours(table):
    """Rows of runs."""
    return [row for row in table.rows if "not run" not in row]


def cells(table, row):
    return dict(zip(table.header, row, strict=True))


def well_formed(table):
    assert all(len(row) == len(table.header) for row in table.rows)
    assert all(isinstance(cell, str) for row in table.rows for cell in row)
    return table


def test_own_is_the_integrator_of_the_training(run):
    row = own_row(run(nfe=20.0).metrics["policies"])
    assert row["policy"] == str(PhysionetTask.reference) == "Dopri5(atol=0.0001)"
    assert row["nfe"] == 20
    assert own_row(run(model="z0").metrics["policies"])["policy"] == "no ODE"


# ---- Table 5


def test_table_5_has_the_papers_numbers_in_its_order(run):
    table = well_formed(table_5([run("error")]))
    assert list(dict.fromkeys(tuple(row[:3]) for row in table.rows)) == [
        ("No reg.", "0.7190", "74.00"),
        ("Kinetic energy reg.", "0.7581", "63.50"),
        ("L1 reg.", "0.7630", "68.00"),
        ("L2 reg.", "0.7450", "59.00"),
        ("Our reg.", "0.7509", "39.71"),
        ("No reg. & DISE", "0.7513", "57.57"),
        ("Our reg. & DISE", "0.7604", "34.10"),
    ]
    assert list(table.header) == ["model", "paper: AUC", "paper: NFE", *MEASURES]


def test_table_5_has_our_numbers_beside_the_papers(run):
    table = table_5([run("error")])
    paper, with_dise = ["Our reg.", "0.7509", "39.71"], ["Our reg. & DISE", "0.7604", "34.10"]
    of_b = ["0.7000", "0.6500 … 0.7500"]
    assert ours(table) == [
        [*paper, "z_end-error-seed0", "0.8000", "0.7500 … 0.8500", "20.00", "–", "26.00", *of_b],
        [
            *with_dise, "z_end-error-seed0, (paper)", "0.7375", "0.6875 … 0.7875", "4.00", "0.041", "20.00",
            "0.6375", "0.5875 … 0.6875",
        ],
        [
            *with_dise, "z_end-error-seed0, (pooled)", "0.8050", "0.7550 … 0.8550", "8.00", "0.250", "26.00",
            "0.7050", "0.6550 … 0.7550",
        ],
    ]  # fmt: skip
    assert table.rows[0] == ["No reg.", "0.7190", "74.00", "not run", *["–"] * 7]


def test_table_5_has_every_run_of_a_row(run):
    table = table_5([run(seed=0), run(seed=1), run("l2")])
    names = [cells(table, row)["run"] for row in table.rows]
    assert names == [
        *("z_end-none-seed0", "z_end-none-seed1", "not run", "not run", "z_end-l2-seed0", "not run"),
        *(f"z_end-none-seed{seed}, ({selector})" for seed in (0, 1) for selector in ("paper", "pooled")),
        "not run",
    ]


def test_the_model_that_classifies_the_start_stands_beside_the_published_one(run):
    """The published test: three samples a record, pooled, and their interval."""
    table = well_formed(table_5([run(model="z0")]))
    assert [row for row in ours(table) if row[0] != "published Latent ODE"] == []
    assert table.rows[-1] == [
        "published Latent ODE", "0.829", "–", "z0-none-seed0", "0.7900", "0.7400 … 0.8400", "0.00", "–", "–",
        "0.6900", "0.6800 … 0.7000",
    ]  # fmt: skip


def test_a_regularizer_that_the_paper_does_not_have_is_not_in_table_5(run):
    assert ours(table_5([run("raw-error")])) == []


def test_table_5_keeps_the_papers_row_of_a_run_without_selectors(run):
    table = well_formed(table_5([run("none", dise=False)]))
    assert [cells(table, row)["run"] for row in table.rows if "No reg." in row[0]] == ["z_end-none-seed0", "not run"]


# ---- Table 6


def test_table_6_has_the_papers_shares_and_ours(run):
    table = well_formed(table_6([run(), run(model="z0")]))
    assert list(table.header) == ["run", "Dopri5", "RK4", "Euler", "Bosh3"]
    assert table.rows == [
        ["paper: Our reg. & DISE", "87.5%", "0.0%", "12.5%", "–"],
        # two of Euler's family, a quarter each
        ["z_end-none-seed0, DISE (paper)", "12.5%", "0.0%", "50.0%", "37.5%"],
        ["z_end-none-seed0, DISE (pooled)", "0.0%", "0.0%", "100.0%", "0.0%"],
    ]


def test_table_6_without_selectors(run):
    assert table_6([run(dise=False)]).header == ["run", "Dopri5", "RK4", "Euler"]


# ---- against DOPRI


def test_what_dise_loses_and_saves_selector_included(run):
    table = well_formed(against_dopri([run(nfe=20.0), run(model="z0"), run("l1", dise=False)]))
    assert table.rows == [
        [
            # 4 + 0.041 of 20 and of 21
            "z_end-none-seed0, DISE (paper)", "-0.0625", "-0.0725 … -0.0525", "4.04", "20.2%",
            "-0.1625", "-0.1725 … -0.1525", "4.04", "19.2%",
        ],
        [
            "z_end-none-seed0, DISE (pooled)", "+0.0050", "-0.0050 … +0.0150", "8.25", "41.2%",
            "-0.0950", "-0.1050 … -0.0850", "8.25", "39.3%",
        ],
    ]  # fmt: skip


def test_nothing_is_a_share_of_no_evaluation(run):
    """Stays of which all end at once."""
    assert [row[4] for row in against_dopri([run(nfe=0.0)]).rows] == ["–", "–"]


# ---- over seeds


def test_means_over_seeds(run):
    runs = [run(seed=seed, auroc=auroc, nfe=nfe) for seed, auroc, nfe in [(0, 0.5, 14), (1, 0.6, 20), (10, 0.7, 26)]]
    table = well_formed(seed_table(runs))
    assert table.rows == [
        [
            "z_end-none", "3", "0.6000 ± 0.1000", "0.3500 ± 0.1000", "0.0312 ± 0.0000",
            "0.5000 ± 0.1000", "0.2500 ± 0.1000", "0.0312 ± 0.0000", "20.0 ± 6.0",
        ]
    ]  # fmt: skip
    assert table.header[2:8] == [
        "AUROC", "AUPRC", "calibration error", "AUROC, set b", "AUPRC, set b", "calibration error, set b",
    ]  # fmt: skip


def test_one_seed_has_no_deviation_and_every_model_a_row(run):
    table = seed_table([run("l1"), run(model="z0"), run(name="z_end-error-0.5-seed0")])
    assert [row[:3] for row in table.rows] == [
        ["z_end-l1", "1", "0.8000"],
        ["z0-none", "1", "0.8000"],
        ["z_end-error-0.5", "1", "0.8000"],
    ]


# ---- all policies


def test_every_policy_of_a_run_on_both_parts(run):
    one = run(name="r")
    tables = [well_formed(table) for table in policy_tables(one)]
    assert [table.title for table in tables] == [
        "r: all policies, 800 test records",
        "r: all policies, 4,000 records of set b",
    ]
    for table, part in zip(tables, ("policies", "policies_b"), strict=True):
        assert [row[0] for row in table.rows] == [row["policy"] for row in one.metrics[part]]
    rows = {row[0]: row[1:] for row in tables[0].rows}
    # area, interval, difference, interval; AUPRC, calibration error; gap, share within β; NFE, selector, batch
    assert rows["Euler"] == [
        *("0.6750", "0.6250 … 0.7250", "-0.1250", "-0.1350 … -0.1150", "0.4250", "0.0312", "0.1250", "75.0%"),
        *("1.00", "–", "1.00"),
    ]
    assert rows["DISE (pooled)"][-3:] == ["8.00", "0.250", "26.00"]
    assert rows["random, mix of paper"] == [
        *("0.7300", "–", "–", "–", "0.4800", "0.0312", "–", "–", "4.00", "–", "–"),
    ]
    assert "β = 0.02" in tables[0].note


def test_every_policy_of_a_model_without_a_solve(run):
    for table in policy_tables(run(model="z0")):
        ((policy, *_),) = well_formed(table).rows
        assert policy == "no ODE"


@pytest.mark.parametrize("table", [table_5, table_6, against_dopri, seed_table])
def test_tables_are_written_in_markdown(run, table):
    made = table([run(), run("error", seed=1), run(model="z0")])
    lines = made.markdown().splitlines()
    assert lines[0] == f"## {made.title}"
    assert sum(line.startswith("| ") for line in lines) == 2 + len(made.rows)
