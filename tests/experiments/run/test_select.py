from dataclasses import asdict
from functools import partial

import pytest
import torch

from dise import RK4, Dopri5, Dynamic, Euler, solve
from dise.select import (
    Committee,
    CostSelector,
    FitHistory,
    PenaltyChoice,
    PenaltyTrial,
    PooledNetwork,
    choose_penalty,
    collect_costs,
)
from dise_experiments.mnist import task as mnist_task
from dise_experiments.mnist.model import resnet
from dise_experiments.mnist.task import MnistTask
from dise_experiments.run.config import ExperimentError, RunConfig
from dise_experiments.run.rundir import claim_run, load_model, read_json, save_weights
from dise_experiments.run.select import check_rules, load_dynamic, select_run

TASK = MnistTask()
CANDIDATES = ["Euler", "RK4", "Dopri5"]
SELECTORS = ["paper", "pooled", "confidence"]
COSTS = "sample, Eq. 4"


def selection(path):
    return read_json(path / "selection.json")


def held_out(splits):
    return TASK.selection_batches(None, splits, on="held-out", unit="sample")


@pytest.fixture
def quick(monkeypatch):
    """Only the pooled network, which is fitted in no time."""
    monkeypatch.setattr(mnist_task.MnistTask, "selectors", {"pooled": MnistTask.selectors["pooled"]})


# ---- what a selection leaves


def test_files(finished):
    new = {file.name for file in finished["selected"].iterdir()} - {file.name for file in finished["trained"].iterdir()}
    assert new == {"selection.json", *(f"selector-{name}.safetensors" for name in SELECTORS)}


def test_settings_and_fits(finished):
    there = selection(finished["selected"])
    # M is null: it was not asked for
    assert (there["on"], there["alpha"], there["M"]) == ("held-out", 0.3, None)
    assert list(there["units"]) == [COSTS]
    assert there["units"][COSTS]["samples"] == 40
    assert list(there["units"][COSTS]["candidates"]) == CANDIDATES
    assert list(there["selectors"]) == SELECTORS
    for fit in there["selectors"].values():
        assert fit["unit"] == COSTS
        assert sum(fit["shares"]) == pytest.approx(1)
        assert fit["validation_loss"] <= fit["initial_loss"]
        assert fit["best_epoch"] < fit["epochs"]


@torch.no_grad()
def test_how_often_candidates_are_adequate_and_their_nfe_are_those_of_running_them(finished, tiny):
    model = load_model(finished["selected"], finished["config"])
    ((x, y),) = held_out(tiny)
    for candidate in (Euler(), RK4(), Dopri5(rtol=1e-3, atol=1e-3)):
        solution = solve(model.block.f, model.stem(x), 0.0, 1.0, candidate)
        accuracy = (model.head(solution.y).argmax(1) == y).double().mean()
        there = selection(finished["selected"])["units"][COSTS]["candidates"][str(candidate)]
        assert there == {
            "adequate": pytest.approx(accuracy.item()),
            "nfe": pytest.approx(solution.nfe.double().mean().item()),
        }


@pytest.mark.parametrize("name", SELECTORS)
@torch.no_grad()
def test_a_saved_selector_routes_as_it_did_when_it_was_fitted(finished, tiny, name):
    model = load_model(finished["selected"], finished["config"])
    dynamic = load_dynamic(finished["selected"], name, TASK, model)
    ((x, _),) = held_out(tiny)
    solution = solve(model.block.f, model.stem(x), 0.0, 1.0, dynamic)
    shares = torch.bincount(solution.choice, minlength=3) / 40
    assert shares.tolist() == pytest.approx(selection(finished["selected"])["selectors"][name]["shares"])


def test_the_run_itself_is_left_alone(finished):
    for name in ("config.json", "model.safetensors", "training.json"):
        assert (finished["trained"] / name).read_bytes() == (finished["selected"] / name).read_bytes()


def test_a_selection_depends_on_the_runs_seed_alone(finished, stage, quick):
    path = stage("trained")
    torch.manual_seed(12345)
    select_run(path)
    name = "selector-pooled.safetensors"
    assert (path / name).read_bytes() == (finished["selected"] / name).read_bytes()


def test_settings_are_passed_on(stage, quick):
    result = select_run(stage("trained"), on="train", alpha=0.1, penalty=50)
    assert (result["on"], result["alpha"], result["M"]) == ("train", 0.1, 50)
    assert result["units"][COSTS]["samples"] == 40


def test_collapse_is_told(stage, quick, monkeypatch):
    monkeypatch.setattr("dise_experiments.run.select.diagnose", lambda choice, costs: f"{len(choice)} of {len(costs)}")
    lines = []
    result = select_run(stage("trained"), log=lines.append)
    assert result["selectors"]["pooled"]["warning"] == "40 of 40"
    assert "warning: selector 'pooled': 40 of 40" in lines


# ---- the choice of M


@pytest.fixture
def model(finished):
    """The run's."""
    return load_model(finished["trained"], finished["config"])


@pytest.fixture
def costs(model, tiny):
    """What the selectors of the run are fitted to."""
    return collect_costs(model, held_out(tiny), TASK.candidates, TASK.rule(None, None, 4))


def test_the_papers_selector_has_the_papers_penalty_and_the_others_one_of_the_trials(finished):
    fits = selection(finished["selected"])["selectors"]
    paper = fits.pop("paper")
    assert (paper["M"], paper["trials"], paper["passed"]) == (1000, [], None)
    for fit in fits.values():
        # 40 images are too few to pass the test, so all are tried
        assert [trial["M"] for trial in fit["trials"]] == [1e5, 1e3]
        assert fit["M"] in (1e3, 1e5)
        assert all(set(trial) == {"M", "alpha", "adequate", "nfe", "loss_bound"} for trial in fit["trials"])


@pytest.mark.parametrize("name", ["pooled", "confidence"])
def test_the_choice_is_by_cross_validation_on_the_held_out_images(finished, costs, model, name):
    fit = selection(finished["selected"])["selectors"][name]
    network = partial(TASK.selectors[name].network, model, 3)
    found = choose_penalty(costs, network, penalties=(1e3, 1e5), folds=4, seed=finished["config"].seed)
    assert (fit["M"], fit["passed"]) == (found.M, found.passed)
    assert fit["trials"] == [asdict(trial) for trial in found.trials]
    # what was tested is what is used
    used = load_dynamic(finished["selected"], name, TASK, model).selector
    assert same_weights(used, found.selector)
    assert fit["members"] == len(used.members) == 6
    histories = [member.history for member in found.selector.members]
    assert fit["epochs"] == pytest.approx(sum(len(history.validation_losses) for history in histories) / 6)
    assert fit["initial_loss"] == pytest.approx(sum(history.initial_loss for history in histories) / 6)


@pytest.fixture
def choices(monkeypatch):
    """Calls of choose_penalty, which finds that M = 12345 passes its test."""
    calls = []

    def choose(costs, network, *, tolerance, seed, log):
        assert tolerance == 1e-3
        calls.append((costs, network(), seed))
        trial = PenaltyTrial(12345.0, 0.3, 0.5, 7.0, 0.01)
        torch.manual_seed(len(calls))
        committee = Committee(CostSelector(network(), candidates=len(costs.candidates)) for _ in range(2))
        for member in committee.members:
            member.history = FitHistory(initial_loss=1.0)
        return PenaltyChoice(12345.0, 0.3, True, (trial,), trial, committee)

    monkeypatch.setattr("dise_experiments.run.select.choose_penalty", choose)
    return calls


def test_the_selector_of_the_choice_is_used_and_diagnosed_with_the_chosen_penalty(
    stage, quick, choices, model, costs, monkeypatch
):
    diagnosed = []
    monkeypatch.setattr("dise_experiments.run.select.diagnose", lambda choice, costs: diagnosed.append(costs.rule.M))
    path, lines = stage("trained"), []
    result = select_run(path, log=lines.append)
    ((seen, network, seed),) = choices
    assert (len(seen), seen.rule, seed) == (40, TASK.rule(None, None, 4), 0)
    assert isinstance(network, PooledNetwork)
    assert result["selectors"]["pooled"]["M"] == 12345
    assert result["selectors"]["pooled"]["passed"] is True
    assert result["selectors"]["pooled"]["trials"] == [
        {"M": 12345, "alpha": 0.3, "adequate": 0.5, "nfe": 7, "loss_bound": 0.01}
    ]
    assert diagnosed == [12345]
    assert "fitting selector 'pooled', M by cross-validation" in lines
    torch.manual_seed(1)
    chosen = [CostSelector(TASK.selectors["pooled"].network(model, 3), candidates=3) for _ in range(2)]
    assert result["selectors"]["pooled"]["members"] == 2
    assert same_weights(load_dynamic(path, "pooled", TASK, model).selector, Committee(chosen))


def test_with_a_given_penalty_one_selector_is_fitted_to_all_samples(stage, quick, choices, model, costs):
    path, lines = stage("trained"), []
    result = select_run(path, penalty=12345.0, log=lines.append)
    assert "fitting selector 'pooled', M = 12345" in lines
    torch.manual_seed(0)
    fitted = CostSelector.fit(TASK.selectors["pooled"].network(model, 3), costs.with_penalty(12345.0), seed=0)
    assert result["selectors"]["pooled"]["members"] == 1
    assert result["selectors"]["pooled"]["epochs"] == len(fitted.history.validation_losses)
    assert same_weights(load_dynamic(path, "pooled", TASK, model).selector, fitted)


def same_weights(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_a_given_penalty_is_every_selectors_and_nothing_is_chosen(stage, choices):
    result = select_run(stage("trained"), penalty=50)
    assert choices == []
    assert result["M"] == 50
    fits = result["selectors"].values()
    assert [(fit["M"], fit["trials"], fit["passed"]) for fit in fits] == [(50, [], None)] * 3


def test_the_papers_penalty_can_be_given_too(stage, quick, choices):
    result = select_run(stage("trained"), penalty=1000)
    assert (choices, result["selectors"]["pooled"]["M"]) == ([], 1000)


def test_only_selectors_that_want_to_choose_do(stage, choices, monkeypatch):
    pooled = MnistTask.selectors["pooled"]
    specs = {"a": pooled._replace(tolerance=None), "b": pooled}
    monkeypatch.setattr(MnistTask, "selectors", specs)
    result = select_run(stage("trained"))
    assert len(choices) == 1
    assert {name: fit["M"] for name, fit in result["selectors"].items()} == {"a": 1000, "b": 12345}


def test_alpha_reaches_the_choice(stage, quick, choices):
    select_run(stage("trained"), alpha=0.7)
    assert choices[0][0].rule == TASK.rule(0.7, None, 4)


def test_selectors_of_another_unit_have_costs_of_their_own(stage, choices, monkeypatch):
    """A selector for halves of images: as many rows, another number of them."""
    pooled = MnistTask.selectors["pooled"]
    monkeypatch.setattr(MnistTask, "selectors", {"a": pooled, "b": pooled._replace(unit="half"), "c": pooled})
    units, untouched = [], MnistTask.selection_batches

    def batches(self, model, splits, *, on, unit):
        units.append(unit)
        everything = untouched(self, model, splits, on=on, unit=unit)
        return everything if unit == "sample" else [(x[:20], y[:20]) for x, y in everything]

    monkeypatch.setattr(MnistTask, "selection_batches", batches)
    path = stage("trained")
    result = select_run(path)
    assert units == ["sample", "half"]
    assert {unit: there["samples"] for unit, there in result["units"].items()} == {COSTS: 40, "half, Eq. 4": 20}
    assert {name: fit["unit"] for name, fit in result["selectors"].items()} == {
        "a": COSTS,
        "b": "half, Eq. 4",
        "c": COSTS,
    }
    assert sorted(len(costs) for costs, _, _ in choices) == [20, 40, 40]
    assert selection(path) == result


def test_a_selector_may_choose_from_some_of_the_candidates(stage, choices, model, monkeypatch):
    pooled = MnistTask.selectors["pooled"]
    monkeypatch.setattr(MnistTask, "selectors", {"some": pooled._replace(candidates=(0, 2))})
    path = stage("trained")
    fit = select_run(path)["selectors"]["some"]
    assert choices[0][0].candidates == (TASK.candidates[0], TASK.candidates[2])
    assert len(fit["shares"]) == 3
    assert fit["shares"][1] == 0
    assert load_dynamic(path, "some", TASK, model).candidates == (TASK.candidates[0], TASK.candidates[2])


# ---- again


@pytest.mark.parametrize("options", [{}, {"on": "held-out", "alpha": 0.3}], ids=["default", "same"])
def test_a_selection_is_reused(stage, snapshot, options):
    path = stage("selected")
    before = snapshot(path)
    assert select_run(path, **options) == selection(path)
    assert snapshot(path) == before


def test_a_selection_with_a_given_penalty_is_reused_with_it_alone(stage, snapshot, quick):
    path = stage("trained")
    result = select_run(path, penalty=50)
    before = snapshot(path)
    assert select_run(path, penalty=50.0) == result
    for penalty in (51, None):
        with pytest.raises(ExperimentError, match=rf"was fitted with {{'M': 50}}, expected .*'M': {penalty}"):
            select_run(path, penalty=penalty)
    assert snapshot(path) == before


# 1000 is the paper's, but the other selector's M was chosen
@pytest.mark.parametrize("options", [{"alpha": 0.2}, {"penalty": 500}, {"penalty": 1000}, {"on": "train"}])
def test_a_selection_with_other_settings_is_refused(stage, snapshot, options):
    path = stage("selected")
    before = snapshot(path)
    with pytest.raises(ExperimentError, match="move it away to fit another selection") as caught:
        select_run(path, **options)
    assert "\n" not in str(caught.value)
    assert snapshot(path) == before


def test_an_interrupted_selection_is_made_again(finished, stage, quick):
    path = stage("selected")
    (path / "selection.json").unlink()
    (path / "selector-pooled.safetensors").write_bytes(b"half")
    select_run(path)
    name = "selector-pooled.safetensors"
    assert (path / name).read_bytes() == (finished["selected"] / name).read_bytes()


# ---- errors


@pytest.mark.parametrize(
    ("options", "message"), [({"penalty": 2}, "M: expected more"), ({"alpha": 0}, "alpha: expected")]
)
def test_unusable_settings(stage, options, message):
    path = stage("trained")
    with pytest.raises(ExperimentError, match=message):
        select_run(path, **options)
    assert not (path / "selection.json").exists()


def test_check_rules():
    assert check_rules(TASK, None, None) == {4: TASK.rule(None, None, 4)}
    assert check_rules(TASK, 0.7, 50) == {4: TASK.rule(0.7, 50, 4)}
    for alpha, penalty in ((0, None), (None, -3)):
        with pytest.raises(ExperimentError, match="expected a positive number"):
            check_rules(TASK, alpha, penalty)


@pytest.mark.parametrize("options", [{}, {"penalty": 1000}], ids=["chosen", "given"])
def test_too_few_samples_to_fit_to(stage, tiny, quick, monkeypatch, options):
    ((x, labels),) = held_out(tiny)
    monkeypatch.setattr(MnistTask, "selection_batches", lambda *arguments, **named: [(x[:1], labels[:1])])
    with pytest.raises(ExperimentError, match="expected"):
        select_run(stage("trained"), **options)


def test_no_run(tmp_path):
    with pytest.raises(ExperimentError, match="is not a run directory"):
        select_run(tmp_path / "none")


def test_no_model(stage):
    path = stage("trained")
    (path / "model.safetensors").unlink()
    with pytest.raises(ExperimentError, match="has no trained model"):
        select_run(path)


def test_no_ode(tmp_path, tiny):
    claim_run(tmp_path, RunConfig.of("mnist", "sample", model="resnet"))
    save_weights(resnet(), tmp_path / "model.safetensors")
    with pytest.raises(ExperimentError, match="model 'resnet' do not depend on its integrator"):
        select_run(tmp_path)


def test_a_damaged_selection(stage):
    path = stage("selected")
    text = (path / "selection.json").read_text()
    (path / "selection.json").write_text(text[:30])
    with pytest.raises(ExperimentError, match="not JSON"):
        select_run(path)


def test_load_dynamic(finished, model):
    dynamic = load_dynamic(finished["selected"], "pooled", TASK, model)
    assert isinstance(dynamic, Dynamic)
    assert tuple(dynamic.candidates) == TASK.candidates
    assert not dynamic.selector.training


def test_a_selector_that_is_not_fitted(stage, model):
    path = stage("selected")
    (path / "selector-paper.safetensors").unlink()
    with pytest.raises(ExperimentError, match=r"has no selector 'paper' \(selector-paper.safetensors is missing\)"):
        load_dynamic(path, "paper", TASK, model)


def test_a_selector_of_another_network(stage, model):
    path = stage("selected")
    other = CostSelector(TASK.selectors["pooled"].network(model, 2), candidates=2)
    for selector in (other, Committee([other])):
        save_weights(selector, path / "selector-pooled.safetensors")
        with pytest.raises(ExperimentError, match=f"does not contain the weights of {type(selector).__name__}"):
            load_dynamic(path, "pooled", TASK, model)
