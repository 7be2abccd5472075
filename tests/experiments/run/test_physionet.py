"""PhysioNet 2012 through the command line: a small run of each head, from end to end."""

import json
import re
import shutil
from functools import partial

import lightning  # noqa: F401  here, or its log would keep writing to the stderr of the test that imported it
import pytest
import torch
from PIL import Image
from torchmetrics.functional.classification import binary_auroc
from typer.testing import CliRunner

from dise import RK4, Dopri5, Euler
from dise.select import choose_penalty
from dise_experiments import cli
from dise_experiments.physionet import evaluate as physionet_evaluate
from dise_experiments.physionet import task as physionet_task
from dise_experiments.physionet.data import PhysionetSplits, load_physionet_sample
from dise_experiments.physionet.presets import PRESETS
from dise_experiments.physionet.stays import Stays
from dise_experiments.physionet.task import PhysionetTask
from dise_experiments.run.config import RunConfig
from dise_experiments.run.rundir import load_model, open_run

CHANGES = ("epochs=2", "batch_size=15", "samples=2")
OPTIONS = [option for change in CHANGES for option in ("--set", change)]
SETTINGS = "data, quantization, held_out, epochs, batch_size, samples, left_out, loss, learning_rate, decay, floor"
NAME = "z_end-error-epochs=2-batch_size=15-samples=2-seed0"
ANCHOR = "z0-none-epochs=2-batch_size=15-samples=2-seed0"
REFERENCE = "Dopri5(atol=0.0001)"
SIZES = {"train": 30, "held_out": 16, "test": 24, "set_b": 15}


@pytest.fixture(scope="module", autouse=True)
def small_world():
    """Few records, three candidates, one value of M to choose, and few resamples."""
    whole = load_physionet_sample()
    splits = PhysionetSplits(*(getattr(whole, part)[:size] for part, size in SIZES.items()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(physionet_task, "load_physionet_sample", lambda q: splits)
        patch.setattr(PhysionetTask, "candidates", (Euler(), RK4(), PhysionetTask.reference))
        patch.setattr(PhysionetTask, "baselines", (Dopri5(rtol=1e-1, atol=1e-2),))
        specs = {
            name: spec._replace(candidates=None if spec.candidates is None else (0, 1, 2))
            for name, spec in PhysionetTask.selectors.items()
        }
        patch.setattr(PhysionetTask, "selectors", specs)
        patch.setattr("dise_experiments.run.select.choose_penalty", partial(choose_penalty, penalties=(1e4,), folds=3))
        few = partial(physionet_evaluate.bootstrap_auroc, resamples=100)
        patch.setattr(physionet_evaluate, "bootstrap_auroc", few)
        patch.delenv("DISE_DATA", raising=False)
        patch.setenv("COLUMNS", "300")
        yield splits


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """OUT of `dise run`, and what it printed."""
    out = tmp_path_factory.mktemp("out")
    arguments = ["--model", "z_end", "--model", "z0", "--reg", "error", "--reg", "none", "--device", "cpu"]
    result = CliRunner().invoke(cli.app, ["run", "physionet", *OPTIONS, *arguments, "--out", str(out)])
    assert result.exit_code == 0, result.output
    return out / "physionet" / "sample", result


@pytest.fixture
def ran(finished, tmp_path):
    """A copy of the run directory of head z_end with the error regularizer."""
    return shutil.copytree(finished[0] / NAME, tmp_path / NAME)


def read(path, name):
    return json.loads((path / name).read_text())


# ---- names and settings


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["physionet", "--model", "z1"], "model: there is no 'z1'; choose one of z_end, z0"),
        (["physionet", "--set", "quantisation=1"], f"set: expected NAME=VALUE with a NAME of {SETTINGS}"),
        (["physionet", "--set", "quantization=-1"], "set: quantization: Input should be greater than or equal to 0"),
        (["physionet", "--set", "data=set-c"], "set: data: Input should be 'sample' or 'full'"),
        (["physionet", "--preset", "cpu", "--data-dir", "nowhere"], "PhysioNet: nowhere/physionet2012/set-a.tar.gz"),
    ],
)
def test_wrong_names(dise, tmp_path, arguments, message):
    code, out, err = dise("train", *arguments, "--out", tmp_path / "out")
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ([], "z_end-none-seed0"),
        (["quantization=2"], "z_end-none-quantization=2.0-seed0"),
        (["epochs=3", "samples=1"], "z_end-none-epochs=3-samples=1-seed0"),
    ],
)
def test_names_say_what_was_changed(changes, name):
    assert RunConfig.of("physionet", "cpu", changes=changes).name == name


# ---- end to end


def test_run_prints_the_papers_tables(finished):
    _, result = finished
    for text in (
        "Table 5", "0.7630", "39.71", NAME, "(pooled)", "published Latent ODE", ANCHOR, "Table 6", "87.5%",
        "DISE against DOPRI", "over seeds",
    ):  # fmt: skip
        assert text in result.stdout
    for text in ("candidates, unit: record", "fitting selector 'pooled', M by cross-validation"):
        assert text in result.stderr


def test_run_trains_the_baseline_without_regularizer_alone(finished):
    folder = finished[0]
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == sorted(
        [NAME, NAME.replace("error", "none"), ANCHOR]
    )


def test_run_writes_everything(finished):
    folder = finished[0]
    assert {file.name for file in (folder / NAME).iterdir()} >= {
        "config.json", "model.safetensors", "training.json", "selection.json", "selector-paper.safetensors",
        "selector-paper-dropout.safetensors", "selector-paper-gap.safetensors", "selector-pooled.safetensors",
        "metrics.json", "timing.json",
    }  # fmt: skip
    report = (folder / "report.md").read_text()
    assert report.startswith("# physionet, preset sample\n")
    assert "all policies, 15 records of set b" in report
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", report):
        with Image.open(folder / picture) as image:
            image.verify()


def test_the_run_is_of_the_settings_that_were_set(finished):
    run = open_run(finished[0] / NAME)
    assert run.settings == PRESETS["sample"].model_dump() | {"epochs": 2, "batch_size": 15, "samples": 2}
    assert (run.model, run.reg, run.weight) == ("z_end", "error", 0.015)
    checkpoint = torch.load(finished[0] / NAME / "checkpoints" / "last.ckpt", weights_only=False)
    assert checkpoint["global_step"] == 2 * 2


def test_the_weights_are_those_of_the_epoch_of_the_largest_held_out_area(finished):
    path = finished[0] / NAME
    best = torch.load(path / "checkpoints" / "best.ckpt", weights_only=False)
    assert read(path, "training.json")["best_epoch"] == best["epoch"] + 1
    kept = load_model(path, open_run(path)).state_dict()
    assert all(torch.equal(kept[name], best["state_dict"][f"model.{name}"]) for name in kept)


def test_training_logs_what_the_loss_is_made_of(finished):
    training = read(finished[0] / NAME, "training.json")
    assert {"train/loss", "train/penalty", "train/likelihood", "train/kl", "train/cross_entropy", "train/nfe"} <= set(
        training
    )
    assert 0 <= training["held_out/auroc"] <= 1


def test_what_was_selected(finished):
    selection = read(finished[0] / NAME, "selection.json")
    assert {name: unit["samples"] for name, unit in selection["units"].items()} == {
        "record, Eq. 4": SIZES["held_out"],
        "record, Eq. 5": SIZES["held_out"],
    }
    # the reference's own probability is always near
    assert selection["units"]["record, Eq. 5"]["candidates"][REFERENCE]["adequate"] == 1
    assert {name: (fit["M"], fit["passed"]) for name, fit in selection["selectors"].items()} == {
        "paper": (1000, None), "paper-dropout": (1000, None), "paper-gap": (1000, None),
        # a test at 0.02 needs 136 records
        "pooled": (1e4, False),
    }  # fmt: skip
    assert (selection["on"], selection["alpha"]) == ("held-out", 0.05)


def test_what_was_measured_is_what_the_saved_model_says(finished, small_world):
    path = finished[0] / NAME
    metrics, task = read(path, "metrics.json"), PhysionetTask()
    model = load_model(path, open_run(path))
    splits = task.load(PRESETS["sample"], None)
    for suffix, records in (("", splits.test), ("_b", splits.set_b)):
        with torch.no_grad():
            logits = model(Stays.of(records))
        rows = {row["policy"]: row for row in metrics[f"policies{suffix}"]}
        assert rows[REFERENCE]["auroc"] == pytest.approx(binary_auroc(logits, records.labels).item(), abs=1e-6)
        assert metrics[f"samples{suffix}"] == len(records)
        for name in ("paper", "paper-dropout", "paper-gap", "pooled"):
            row = rows[f"DISE ({name})"]
            assert sum(row["shares"].values()) == pytest.approx(1)
            assert row["selector_macs"] == metrics["macs"]["record"][name] / metrics["macs"]["record"]["f"]
    assert metrics["macs"]["record"]["f"] == 20 * 50 + 3 * 50 * 50 + 50 * 20
    assert metrics["selection"] == {"on": "held-out", "alpha": 0.05, "M": None}


def test_the_head_that_reads_the_start_is_neither_selected_for_nor_timed(finished):
    path = finished[0] / ANCHOR
    names = {file.name for file in path.iterdir()}
    assert {"selection.json", "timing.json"}.isdisjoint(names)
    metrics = read(path, "metrics.json")
    assert [row["policy"] for row in metrics["policies"]] == ["no ODE"]
    assert metrics["published"]["interval"][0] <= metrics["published"]["auroc"] <= metrics["published"]["interval"][1]


def test_times_are_of_a_batch_of_records(finished):
    timing = read(finished[0] / NAME, "timing.json")
    assert (timing["batch"], timing["batches"]) == (24, 1)
    policies = {"torchdiffeq dopri5", "Euler", "RK4", REFERENCE, "DISE (paper)", "DISE (pooled)"}
    assert policies <= set(timing["ode_ms"])
    assert set(timing["ode_ms"]) == set(timing["model_ms"])
    assert set(timing["parts_ms"]) == {"f", "paper", "paper-dropout", "paper-gap", "pooled"}


def test_run_again_reuses_everything(finished, dise):
    folder = finished[0]
    names = ("model.safetensors", "selection.json", "metrics.json", "timing.json", "training.json")
    before = {name: (folder / NAME / name).stat().st_mtime_ns for name in names}
    code, out, err = dise("run", "physionet", *OPTIONS, "--reg", "error", "--device", "cpu", "--out", folder.parents[1])
    assert code == 0
    assert "trained before: reused" in err
    assert {name: (folder / NAME / name).stat().st_mtime_ns for name in names} == before
    assert out == finished[1].stdout


def test_training_is_reproducible(finished, dise, tmp_path):
    code, out, _ = dise("train", "physionet", *OPTIONS, "--reg", "error", "--device", "cpu", "--out", tmp_path)
    path = tmp_path / "physionet" / "sample" / NAME
    assert (code, out) == (0, f"{path}\n")
    models = [load_model(where, open_run(where)) for where in (path, finished[0] / NAME)]
    assert all(map(torch.equal, *(model.state_dict().values() for model in models)))


def test_select_prints_a_table_for_each_equation(ran, dise):
    code, out, _ = dise("select", ran, "--device", "cpu")
    assert code == 0
    for equation in (4, 5):
        assert f"Selection on 16 held-out rows (record, Eq. {equation}), α = 0.05" in out


def test_there_is_nothing_to_select_for_the_other_head(finished, dise, tmp_path):
    path = shutil.copytree(finished[0] / ANCHOR, tmp_path / ANCHOR)
    code, _, err = dise("select", path, "--device", "cpu")
    assert code == 2
    assert "the answers of model 'z0' do not depend on its integrator, so there is nothing to select" in err


def test_evaluate_prints_every_policy(ran, dise):
    code, out, _ = dise("evaluate", ran, "--device", "cpu")
    assert code == 0
    for text in ("24 test records", "15 records of set b", "oracle", "DISE (pooled)", "random, mix of paper", "− DOPRI",
                 "torchdiffeq dopri5"):  # fmt: skip
        assert text in out


def test_selectors_of_another_penalty(ran, dise):
    (ran / "selection.json").unlink()
    code, _, _ = dise("select", ran, "-M", 50, "--device", "cpu")
    assert code == 0
    fits = read(ran, "selection.json")["selectors"]
    assert {fit["M"] for fit in fits.values()} == {50}
