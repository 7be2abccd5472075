import pytest
from pydantic import ValidationError

from dise_experiments.physionet.paper import PUBLISHED, TABLE_5, TABLE_6
from dise_experiments.physionet.presets import ALPHA, BETA, PENALTY, PRESETS, PREVALENCE, TEST_BATCH, WEIGHTS, Preset

SMALL = Preset(data="sample", epochs=1)


# ---- the paper's numbers (its section 4.2, Tables 5 and 6) and the published model's


def test_the_papers_weights():
    paper = {name: WEIGHTS[name] for name in ("kinetic", "l1", "l2", "error")}
    assert paper == {"kinetic": 0.045, "l1": 0.0002, "l2": 0.0025, "error": 0.015}
    assert WEIGHTS["none"] == 0


def test_the_papers_costs_and_batch():
    assert (ALPHA, PENALTY, TEST_BATCH) == (0.05, 1000, 60)
    assert 0 < BETA < 0.5


def test_the_papers_table_5():
    assert [(row.label, row.auroc, row.nfe) for row in TABLE_5] == [
        ("No reg.", 0.7190, 74),
        ("Kinetic energy reg.", 0.7581, 63.5),
        ("L1 reg.", 0.7630, 68),
        ("L2 reg.", 0.7450, 59),
        ("Our reg.", 0.7509, 39.71),
        ("No reg. & DISE", 0.7513, 57.57),
        ("Our reg. & DISE", 0.7604, 34.1),
    ]
    assert [(row.reg, row.dise) for row in TABLE_5] == [
        *((reg, False) for reg in ("none", "kinetic", "l1", "l2", "error")),
        *((reg, True) for reg in ("none", "error")),
    ]


def test_the_papers_table_6():
    assert TABLE_6 == {"Dopri5": 0.875, "RK4": 0, "Euler": 0.125}


def test_the_published_area():
    # Rubanova, Chen, Duvenaud, 2019, Table 6: latent ODE with the ODE-RNN encoder
    assert PUBLISHED == (0.829, 0.004)


@pytest.mark.parametrize("name", ["sample", "cpu", "paper"])
def test_batches_and_rates_are_the_published_ones(name):
    preset = PRESETS[name]
    assert (preset.samples, preset.learning_rate, preset.decay, preset.floor) == (3, 0.01, 0.999, 0.001)
    assert preset.batch_size == (20 if name == "sample" else 50)


def test_the_papers_preset_is_as_long_as_published():
    assert PRESETS["paper"].epochs == 100  # --niters 100


def test_presets_grow():
    assert [preset.epochs for preset in PRESETS.values()] == sorted({preset.epochs for preset in PRESETS.values()})
    assert {name: preset.data for name, preset in PRESETS.items()} == {
        "sample": "sample", "cpu": "full", "paper": "full",
    }  # fmt: skip


def test_the_threshold_is_the_share_of_deaths_in_the_published_training_part():
    assert pytest.approx(433 / 3200) == PREVALENCE  # test_data.py counts them


# ---- settings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("data", "set-c"),
        ("quantization", -0.1),
        ("quantization", float("inf")),
        ("held_out", 7),
        ("held_out", 3200),
        ("epochs", 0),
        ("epochs", 1.5),
        ("batch_size", 0),
        ("samples", 0),
        ("learning_rate", 0),
        ("learning_rate", float("nan")),
        ("decay", 0),
        ("decay", 1.1),
        ("floor", -1e-3),
        ("floor", float("inf")),
    ],
)
def test_settings_are_checked(name, value):
    with pytest.raises(ValidationError) as caught:
        Preset(**(SMALL.model_dump() | {name: value}))
    (error,) = caught.value.errors()
    assert error["loc"] == (name,)


def test_there_are_no_further_settings():
    with pytest.raises(ValidationError, match="momentum"):
        Preset(**SMALL.model_dump(), momentum=0.9)


def test_a_preset_does_not_change():
    with pytest.raises(ValidationError, match="frozen"):
        PRESETS["cpu"].epochs = 3


def test_the_papers_records_are_the_published_ones():
    paper = PRESETS["paper"]
    assert (paper.data, paper.quantization, paper.left_out, paper.epochs) == ("full", 0.016, 0.0, 100)
