import pytest
import torch
from pydantic import ValidationError

from dise.select.judging.non_inferiority import loss_bound
from dise_experiments.circles.data import TARGETS
from dise_experiments.circles.paper import TABLE_8, TABLE_9
from dise_experiments.circles.presets import ALPHA, PENALTY, PRESETS, WEIGHTS, Preset
from dise_experiments.circles.selector import SET
from dise_experiments.circles.task import DEVIATING, POINT_PART

SMALL = Preset(epochs=1, selection_sets=4, test_sets=1)


# ---- the paper's numbers (its section 4.3, Tables 8 and 9; torchdiffeq's examples/cnf.py)


def test_the_papers_weights():
    paper = {name: WEIGHTS[name] for name in ("kinetic", "l1", "l2", "error")}
    assert paper == {"kinetic": 0.0005, "l1": 0.00001, "l2": 0.0003, "error": 0.004}
    assert WEIGHTS["none"] == 0


def test_the_papers_costs():
    assert (ALPHA, PENALTY) == (0.03, 1000)
    # targets reach M^α, beyond what a tanh can give
    assert pytest.approx(1.23, abs=0.005) == PENALTY**ALPHA


def test_the_papers_table_8():
    assert [(row.label, row.nll, row.nfe) for row in TABLE_8] == [
        ("No reg.", 0.8911, 2297),
        ("Kinetic energy reg.", 0.8914, 2286),
        ("L1 reg.", 0.8901, 2259),
        ("L2 reg.", 0.8760, 2904),
        ("Our reg.", 0.8841, 2166),
        ("No reg. & DISE", 0.8883, 2104),
        ("Our reg. & DISE", 0.8742, 1984),
    ]
    assert [(row.reg, row.dise) for row in TABLE_8] == [
        *((reg, False) for reg in ("none", "kinetic", "l1", "l2", "error")),
        *((reg, True) for reg in ("none", "error")),
    ]
    assert {row.reg for row in TABLE_8} <= set(WEIGHTS)


def test_the_papers_table_9():
    assert TABLE_9 == {"Dopri5": 0.875, "RK4": 0, "Euler": 0.125}


@pytest.mark.parametrize("name", ["cpu", "paper"])
def test_training_is_torchdiffeqs_examples(name):
    preset = PRESETS[name]
    assert (preset.epochs * preset.iterations, preset.batch_size, preset.learning_rate) == (1000, 512, 1e-3)


def test_few_iterations_take_larger_steps():
    assert (PRESETS["sample"].epochs * PRESETS["sample"].iterations, PRESETS["sample"].learning_rate) == (400, 3e-3)


def test_presets_grow():
    assert list(PRESETS) == ["sample", "cpu", "paper"]
    for smaller, larger in (("sample", "cpu"), ("cpu", "paper")):
        one, other = PRESETS[smaller].model_dump(), PRESETS[larger].model_dump()
        assert all(one[key] <= other[key] for key in one if key not in ("target", "learning_rate"))
        assert one != other
    assert {preset.target for preset in PRESETS.values()} == {"circles"}


@pytest.mark.parametrize("name", PRESETS)
def test_a_selector_can_pass_its_test(name):
    """If it loses none of the selection rows."""
    number = PRESETS[name].selection_sets
    for rows in (number, number // POINT_PART * SET):
        adequate = torch.ones(rows, dtype=torch.bool)
        assert loss_bound(adequate, adequate) <= DEVIATING


# ---- settings


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_can_be_set(target):
    assert Preset(target=target, epochs=1, selection_sets=4, test_sets=1).target == target


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("target", "squares"),
        ("target", ""),
        ("epochs", 0),
        ("epochs", 1.5),
        ("epochs", "abc"),
        ("iterations", 0),
        ("batch_size", 0),
        ("learning_rate", 0),
        ("learning_rate", -1e-3),
        ("learning_rate", float("inf")),
        ("learning_rate", float("nan")),
        ("selection_sets", 3),
        ("test_sets", 0),
    ],
)
def test_settings_are_checked(name, value):
    with pytest.raises(ValidationError) as caught:
        Preset(**(SMALL.model_dump() | {name: value}))
    (error,) = caught.value.errors()
    assert error["loc"] == (name,)


def test_an_unknown_target_is_told_which_there_are():
    with pytest.raises(ValidationError) as caught:
        Preset(**(SMALL.model_dump() | {"target": "squares"}))
    (error,) = caught.value.errors()
    assert error["msg"] == (
        "there is no 'squares'; choose one of circles, moons, eight-gaussians, pinwheel, checkerboard"
    )


def test_there_are_no_further_settings():
    with pytest.raises(ValidationError, match="momentum"):
        Preset(**SMALL.model_dump(), momentum=0.9)


def test_a_preset_does_not_change():
    with pytest.raises(ValidationError, match="frozen"):
        PRESETS["cpu"].epochs = 3
