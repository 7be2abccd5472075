"""The command line on 64 training, 40 held-out and 40 test images."""

import re
import shutil
import subprocess
import sys
from functools import partial

import lightning  # noqa: F401  here, or its log would keep writing to the stderr of the test that imported it
import pytest
import torch
from typer.testing import CliRunner

from dise.select import choose_penalty
from dise_experiments import cli
from dise_experiments.mnist import task as mnist_task
from dise_experiments.mnist.data import MnistSplits, load_mnist_sample
from dise_experiments.mnist.presets import PRESETS, Preset
from dise_experiments.mnist.task import MnistTask
from dise_experiments.run.registry import TASKS

TINY = Preset(data="sample", epochs=2, schedule="one-cycle", batch_size=8, learning_rate=1.6, monitored=20)
COMMANDS = ("run", "train", "select", "evaluate", "report")
runner = CliRunner()


@pytest.fixture(autouse=True, scope="module")
def tiny():
    sample = load_mnist_sample()
    splits = MnistSplits(sample.train[:64], sample.held_out[:40], sample.test[:40])
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "sample", TINY)
        patch.setattr(mnist_task, "load_mnist_sample", lambda: splits)
        quick = partial(choose_penalty, penalties=(1e3, 1e5), folds=3)
        patch.setattr("dise_experiments.run.select.choose_penalty", quick)
        patch.delenv("DISE_DATA", raising=False)
        patch.setenv("COLUMNS", "200")
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """OUT of `dise run`, and what it printed."""
    out = tmp_path_factory.mktemp("out")
    result = runner.invoke(
        cli.app, ["run", "mnist", "--reg", "error", "--device", "cpu", "--threads", "1", "--out", str(out)]
    )
    assert result.exit_code == 0, result.output
    return out, result


@pytest.fixture
def ran(finished, tmp_path):
    """A copy of the run directory."""
    shutil.copytree(finished[0], tmp_path / "out")
    return tmp_path / "out" / "mnist" / "sample" / "odenet-error-seed0"


@pytest.fixture
def refusal(dise):
    """refusal(*arguments): the one line with which they are refused, after whatever was said of the progress."""

    def run(*arguments):
        code, out, err = dise(*arguments)
        assert code == 2
        assert out == ""
        assert "Traceback" not in err
        (line,) = [line for line in err.splitlines() if "error" in line.split(" ")[0]]
        assert err.endswith(f"{line}\n")
        assert line.startswith("error: ")
        return line

    return run


# ---- help


def test_help_names_every_command(dise):
    code, out, _ = dise("--help")
    assert code == 0
    assert all(command in out for command in COMMANDS)


@pytest.mark.parametrize(
    ("command", "options"),
    [
        (
            "run",
            "--preset --reg --model --weight --seed --set --alpha --penalty --on --data-dir --device --out --no-timing",
        ),
        ("train", "--preset --reg --model --weight --seed --set --data-dir --device --out --threads --no-resume"),
        ("select", "RUN --alpha --penalty --on --data-dir --device"),
        ("evaluate", "RUN --data-dir --device --no-timing"),
        ("report", "FOLDER"),
    ],
)
def test_help_of_commands(dise, command, options):
    code, out, _ = dise(command, "--help")
    assert code == 0
    assert [option for option in options.split() if option not in out] == []


@pytest.mark.long
def test_as_a_program():
    result = subprocess.run(
        [sys.executable, "-m", "dise_experiments", "train", "mnist", "--preset", "huge"],
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "error: preset: there is no 'huge'; choose one of sample, cpu, long, paper\n"


def test_neither_the_library_nor_help_waits_for_what_training_needs():
    heavy = {"lightning", "matplotlib", "scipy", "tensorboard", "torchdiffeq", "torchmetrics"}
    code = f"import sys, dise, dise_experiments.cli; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


# ---- end to end


def test_run_prints_the_papers_tables_and_writes_everything(finished):
    out, result = finished
    for text in ("Table 1", "Table 3", "Models against", "Our reg. & DISE", "5.79", "37%", "odenet-error-seed0"):
        assert text in result.stdout
    path = out / "mnist" / "sample" / "odenet-error-seed0"
    names = {file.name for file in path.iterdir()}
    assert names >= {
        "config.json", "model.safetensors", "training.json", "selection.json", "selector-paper.safetensors",
        "selector-pooled.safetensors", "metrics.json", "timing.json", "training.png", "accuracy-nfe.png",
    }  # fmt: skip
    assert (path.parent / "report.md").read_text().startswith("# mnist, preset sample")
    conclusion = result.stdout.splitlines()[-3:]
    assert re.fullmatch(
        r"DISE: accuracy 0\.\d{3}, [\d.]+ NFE, [\d.]+ ms; torchdiffeq dopri5: 0\.\d{3}, \d+ NFE, [\d.]+ ms",
        conclusion[0],
    )
    assert conclusion[1] == f"See {path.parent / 'report.html'} and odenet-error-seed0/accuracy-nfe.png there"
    assert conclusion[2] == "Next: dise run mnist --preset cpu"


def test_run_again_reuses_everything(finished, ran, dise):
    names = ("model.safetensors", "selection.json", "metrics.json", "timing.json", "training.json")
    before = {name: (ran / name).stat().st_mtime_ns for name in names}
    code, out, err = dise("run", "mnist", "--reg", "error", "--out", ran.parents[2])
    assert code == 0
    assert "trained before: reused" in err
    assert {name: (ran / name).stat().st_mtime_ns for name in names} == before
    assert out.splitlines()[:-2] == finished[1].stdout.splitlines()[:-2]  # the last but one names the directory


def test_train_prints_the_run_directory_alone(finished, dise, tmp_path, ran):
    code, out, err = dise("train", "mnist", "--reg", "error", "--out", ran.parents[2])
    assert (code, out) == (0, f"{ran}\n")
    assert "reused" in err


def test_a_changed_setting_is_another_run(dise, ran):
    # an RKNet is trained in no time; its run is beside the one with the preset's settings
    out = ran.parents[2]
    code, printed, _ = dise("train", "mnist", "--model", "rknet", "--set", "epochs=1", "--device", "cpu", "--out", out)
    path = ran.with_name("rknet-none-epochs=1-seed0")
    assert (code, printed) == (0, f"{path}\n")
    assert '"epochs": 1' in (path / "config.json").read_text()


def test_select_prints_the_candidates(ran, dise):
    code, out, _ = dise("select", ran)
    assert code == 0
    assert "Selection on 40 held-out rows (sample, Eq. 4), α = 0.3" in out
    assert re.search(r"RK4 .* 4\.00", out)
    assert re.search(
        r"paper: M = 1000, .*; pooled: M = (1000|100000) \(no M passed the test; the best one is used\), ",
        " ".join(out.split()),
    )


def test_select_says_which_penalties_it_tries(ran, dise):
    (ran / "selection.json").unlink()
    code, _, err = dise("select", ran)
    assert code == 0
    assert "fitting selector 'pooled', M by cross-validation" in err
    for M in (1000, 100000):
        assert re.search(rf"M = {M}: 0\.\d+ adequate \(reference 0\.\d+, at most \d\.\d+ lost\), NFE \d", err)
    assert "no M passed at a loss of 0.001 within the budget" in err


def test_a_given_penalty_is_not_chosen(ran, dise):
    (ran / "selection.json").unlink()
    code, out, err = dise("select", ran, "-M", 50)
    assert code == 0
    assert "paper: M = 50, " in out
    assert "pooled: M = 50, " in out
    assert "choosing" not in err


def test_evaluate_prints_every_policy(ran, dise):
    code, out, _ = dise("evaluate", ran)
    assert code == 0
    for policy in ("Euler", "RK4", "Dopri5", "oracle", "DISE (pooled)", "random, mix of paper", "torchdiffeq dopri5"):
        assert policy in out
    assert "odenet-error-seed0: all policies" in out
    assert "odenet-error-seed0: wall-clock" in out


def test_evaluate_without_timing_prints_none(ran, dise):
    for name in ("metrics.json", "timing.json"):
        (ran / name).unlink()
    code, out, _ = dise("evaluate", ran, "--no-timing")
    assert code == 0
    assert "all policies" in out
    assert "wall-clock" not in out


def test_report_prints_and_writes(ran, dise):
    code, out, err = dise("report", ran.parent)
    assert code == 0
    for title in ("Table 1", "Table 3", "Models against the plain ODE-Net of the same seed"):
        assert title in out
    assert "all policies" not in out
    assert f"See {ran.parent / 'report.html'} and " in out
    assert err == ""


def test_threads(finished, ran, dise):
    before = torch.get_num_threads()
    try:
        dise("select", ran, "--threads", 2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


# ---- one line and exit code 2


@pytest.mark.parametrize("command", ["run", "train"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cifar"], "task: there is no 'cifar'; choose one of mnist"),
        (["mnist", "--preset", "huge"], "preset: there is no 'huge'; choose one of sample, cpu, long, paper"),
        (["mnist", "--reg", "l3"], "reg: there is no 'l3'"),
        (["mnist", "--model", "vgg", "--reg", "none"], "model: there is no 'vgg'; choose one of odenet, rknet, resnet"),
        (["mnist", "--set", "epoch=3"], "set: expected NAME=VALUE with a NAME of data, epochs, schedule"),
        (["mnist", "--set", "epochs=none"], "set: epochs: "),
        (["circles", "--model", "odenet"], "model: there is no 'odenet'; choose one of flow"),
        (["mnist", "--device", "tpu"], "device: there is no 'tpu'; choose one of auto, cpu, gpu"),
        (["mnist", "--preset", "cpu", "--data-dir", "nowhere"], "nowhere"),
    ],
)
def test_wrong_names(refusal, tmp_path, command, arguments, message):
    assert message in refusal(command, *arguments, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("model", "reg"), [("resnet", "error"), ("resnet", "kinetic"), ("rknet", "error")])
def test_models_that_cannot_have_the_regularizer(refusal, tmp_path, model, reg):
    assert f"reg: '{reg}' needs" in refusal("train", "mnist", "--model", model, "--reg", reg, "--out", tmp_path)


@pytest.mark.parametrize("arguments", [("--model", "rknet", "--reg", "l2"), ("--model", "resnet", "--reg", "l3")])
def test_run_says_that_it_would_run_nothing(refusal, tmp_path, arguments):
    # `run` leaves out baselines with a regularizer; when nothing is left, "`dise run` makes them" is no help
    message = refusal("run", "mnist", *arguments, "--out", tmp_path)
    assert "contains no evaluated run" not in message
    assert "reg" in message


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(refusal):
    assert "no GPU that torch can use" in refusal("train", "mnist", "--device", "gpu")


@pytest.mark.parametrize("command", ["select", "evaluate"])
def test_no_run_directory(refusal, tmp_path, command):
    assert "is not a run directory (config.json is missing)" in refusal(command, tmp_path / "none")


def test_no_runs_to_report(refusal, tmp_path):
    assert "contains no evaluated run" in refusal("report", tmp_path)


def test_runs_of_several_tasks_in_a_folder(refusal, ran, monkeypatch):
    monkeypatch.setitem(TASKS, "another", MnistTask())
    shutil.copytree(ran, ran.with_name("b"))
    config = ran.with_name("b") / "config.json"
    config.write_text(config.read_text().replace('"mnist"', '"another"'))
    assert "contains runs of several tasks (another, mnist)" in refusal("report", ran.parent)


@pytest.mark.parametrize(
    ("command", "name", "message"),
    [
        ("evaluate", "model.safetensors", "does not contain the weights of ImageClassifier"),
        ("evaluate", "selector-paper.safetensors", "does not contain the weights of CostSelector"),
        ("evaluate", "metrics.json", "not JSON"),
        ("evaluate", "config.json", "config.json"),
        ("select", "selection.json", "not JSON"),
    ],
)
def test_damaged_files(refusal, ran, command, name, message):
    content = (ran / name).read_bytes()
    (ran / name).write_bytes(content[: len(content) // 2])
    (ran / "timing.json").unlink()  # its measurement needs the selectors
    assert message in refusal(command, ran)


def test_a_damaged_checkpoint_of_an_unfinished_training(refusal, ran):
    (ran / "model.safetensors").unlink()
    (ran / "checkpoints" / "last.ckpt").write_bytes(b"half")
    arguments = ("train", "mnist", "--reg", "error", "--device", "cpu", "--out", ran.parents[2])
    assert "last.ckpt" in refusal(*arguments)


# 1000 is the paper's M, but that of the other selector was chosen
@pytest.mark.parametrize(("option", "value"), [("--alpha", 0.2), ("-M", 500), ("--penalty", 1000), ("--on", "train")])
def test_other_settings_of_a_selection(refusal, ran, option, value):
    assert "move it away to fit another selection" in refusal("select", ran, option, value)


def test_metrics_of_another_selection(refusal, ran, dise):
    (ran / "selection.json").unlink()
    assert dise("select", ran, "-M", 50)[0] == 0
    assert "move metrics.json and timing.json away" in refusal("evaluate", ran)


def test_no_resume(refusal, ran):
    arguments = ("train", "mnist", "--reg", "error", "--no-resume", "--out", ran.parents[2])
    assert f"{ran} exists" in refusal(*arguments)


@pytest.mark.parametrize(("option", "value"), [("--alpha", 0), ("--penalty", -3), ("-M", 2)])
def test_unusable_settings_of_eq4(refusal, ran, option, value):
    (ran / "selection.json").unlink()
    assert "expected" in refusal("select", ran, option, value)


@pytest.mark.parametrize("task", ["mnist", "circles"])
@pytest.mark.parametrize(("option", "value"), [("--alpha", 0), ("--alpha", "nan"), ("--penalty", -3), ("-M", "inf")])
def test_run_refuses_unusable_settings_before_it_trains(refusal, tmp_path, monkeypatch, task, option, value):
    trained = []
    monkeypatch.setattr("dise_experiments.run.train.train_run", lambda *arguments, **options: trained.append(arguments))
    assert "expected a positive number" in refusal("run", task, option, value, "--out", tmp_path / "out")
    assert trained == []
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("option", "value"), [("--seed", -1), ("--weight", -0.5), ("--weight", "nan"), ("--threads", 0), ("--on", "test")]
)
def test_numbers_out_of_range_are_refused_with_the_usage(dise, option, value):
    code, _, err = dise("run", "mnist", option, value)
    assert code == 2
    assert "Traceback" not in err
    assert option in err


@pytest.mark.parametrize("name", ["runs[tasks]", "[bold]", "a[/b]"])
def test_brackets_in_a_message_are_printed(refusal, tmp_path, name):
    # rich takes [...] for markup; a path is to be printed as it is
    assert str(tmp_path / name) in refusal("select", tmp_path / name)


def test_brackets_in_the_run_directory_are_printed(finished, dise, tmp_path):
    shutil.copytree(finished[0], tmp_path / "x[red]")
    code, out, _ = dise("train", "mnist", "--reg", "error", "--out", tmp_path / "x[red]")
    assert (code, out) == (0, f"{tmp_path / 'x[red]' / 'mnist' / 'sample' / 'odenet-error-seed0'}\n")


# ---- folders


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_report_of_a_run_a_preset_a_task_or_all(ran, dise, level):
    folder = [ran, *ran.parents][level]
    code, out, _ = dise("report", folder)
    assert code == 0
    assert f"See {ran.parent / 'report.html'}" in out


def test_reports_of_several_presets(ran, dise):
    shutil.copytree(ran.parent, ran.parent.parent / "again")
    code, out, _ = dise("report", ran.parent.parent)
    assert code == 0
    for folder in ("sample", "again"):
        assert (ran.parent.parent / folder / "report.md").exists()
        assert f"See {ran.parent.parent / folder / 'report.html'}" in out


def test_a_file_in_place_of_a_folder(refusal, tmp_path):
    (tmp_path / "out").write_text("mine")
    message = refusal("train", "mnist", "--out", tmp_path / "out")
    assert str(tmp_path / "out") in message
    assert (tmp_path / "out").read_text() == "mine"


def test_a_read_only_folder(refusal, monkeypatch, tmp_path):
    def denied(*arguments, **options):
        raise PermissionError(13, "Permission denied", str(tmp_path / "x"))

    monkeypatch.setattr("dise_experiments.run.train.train_run", denied)  # root may write anywhere
    assert f"Permission denied: {tmp_path / 'x'}" in refusal("train", "mnist", "--out", tmp_path)


@pytest.mark.parametrize(("command", "missing"), [("select", "selection"), ("evaluate", "metrics"), ("report", None)])
def test_a_folder_that_takes_no_more_files(ran, dise, monkeypatch, command, missing):
    def denied(file):
        raise OSError(28, "No space left on device", str(file))

    if missing:
        (ran / f"{missing}.json").unlink()
    before = {file: file.read_bytes() for file in ran.parent.rglob("*.json")}
    monkeypatch.setattr("dise_experiments.run.rundir.atomic_write", denied)
    code, _, err = dise(command, ran.parent if command == "report" else ran)
    assert code == 2
    assert f"No space left on device: {ran.parent}" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert {file: file.read_bytes() for file in ran.parent.rglob("*.json")} == before


# ---- Ctrl-C


def test_an_interrupt_while_modules_are_imported():
    """Ctrl-C before the command line exists: one line, and the shell's exit code."""
    script = """
import sys
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "typer":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupting())
from dise_experiments.__main__ import main
main()
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stderr) == (130, "interrupted; the same command continues\n")


def test_an_interrupted_command_says_how_to_continue(dise, monkeypatch, tmp_path):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("dise_experiments.run.train.train_run", interrupted)
    code, _, err = dise("train", "mnist", "--out", tmp_path)
    assert code == 130
    assert "the same command continues" in err
