from dise_experiments.common.summary import by_seed, shares
from dise_experiments.common.task import Run


def run(name, *found):
    """A run of DISE policies with these shares, beside a candidate that has none."""
    rows = [{"policy": "Euler"}, *({"policy": f"DISE ({i})", "shares": each} for i, each in enumerate(found))]
    return Run(name, "m", "none", 0.0, 0, {"policies": rows}, {}, None)


def test_runs_by_everything_but_their_seed():
    names = ["a-none-seed0", "b-error-0.5-seed0", "a-none-seed12", "a-seedling=1-seed0"]
    groups = by_seed([run(name) for name in names])
    assert {name: [one.name for one in group] for name, group in groups.items()} == {
        "a-none": ["a-none-seed0", "a-none-seed12"],
        "b-error-0.5": ["b-error-0.5-seed0"],
        "a-seedling=1": ["a-seedling=1-seed0"],
    }


def test_shares_add_up_within_a_family():
    one = run("r", {"RK4(steps=2)": 0.25, "RK4": 0.5, "Bosh3(rtol=0.01)": 0.25}, {"Euler": 1.0})
    assert shares([one, run("s", {"Dopri5": 1.0})]) == (
        ["Bosh3", "Dopri5", "Euler", "RK4"],
        [
            ["r, DISE (0)", "25.0%", "0.0%", "0.0%", "75.0%"],
            ["r, DISE (1)", "0.0%", "0.0%", "100.0%", "0.0%"],
            ["s, DISE (0)", "0.0%", "100.0%", "0.0%", "0.0%"],
        ],
    )


def test_families_that_are_named_come_first_whether_they_occur_or_not():
    families, rows = shares([run("r", {"Bosh3": 0.5, "Euler": 0.5})], "Dopri5", "Euler")
    assert families == ["Dopri5", "Euler", "Bosh3"]
    assert rows == [["r, DISE (0)", "0.0%", "50.0%", "50.0%"]]
    assert shares([run("r")], "Dopri5") == (["Dopri5"], [])
