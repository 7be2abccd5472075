import pytest
import torch
from scipy.stats import binom
from torchmetrics.functional.classification import binary_auroc

from dise_experiments.common.statistics import bootstrap_auroc, interval, mcnemar, mcnemar_of_errors


def answers(both, only_first, only_second, neither):
    """Two classifiers' answers with these counts, shuffled."""
    pairs = [(True, True)] * both + [(True, False)] * only_first + [(False, True)] * only_second
    table = torch.tensor(pairs + [(False, False)] * neither)
    table = table[torch.randperm(len(table), generator=torch.Generator().manual_seed(0))]
    return table[:, 0], table[:, 1]


@pytest.mark.parametrize(
    ("table", "p"),
    [
        # by hand: twice the tail of ½^n
        ((10, 0, 5, 3), 2 / 2**5),
        ((10, 5, 0, 3), 2 / 2**5),
        ((0, 1, 9, 0), 2 * (1 + 10) / 2**10),
        # 1 + 22 + 231 + 1540 + 7315 + 26334 + 74613 ways of at most 6 in 22
        ((59, 6, 16, 80), 2 * 110_056 / 2**22),
        # as often either way
        ((50, 4, 4, 7), 1.0),
        # nothing to tell them apart by
        ((50, 0, 0, 7), 1.0),
    ],
)
def test_exact_p(table, p):
    test = mcnemar(*answers(*table))
    assert test["p"] == pytest.approx(p, rel=1e-12)
    assert (test["only_first"], test["only_second"]) == table[1:3]
    assert test["difference"] == pytest.approx((table[2] - table[1]) / sum(table))


@pytest.mark.parametrize(("only_first", "only_second"), [(3, 12), (20, 41), (100, 60)])
def test_p_is_the_binomial_tail(only_first, only_second):
    fewer = min(only_first, only_second)
    tail = 2 * binom.cdf(fewer, only_first + only_second, 0.5)
    assert mcnemar(*answers(500, only_first, only_second, 9))["p"] == pytest.approx(tail, rel=1e-9)


def test_exchanging_the_classifiers_mirrors_the_test():
    first, second = answers(30, 4, 11, 5)
    one, other = mcnemar(first, second), mcnemar(second, first)
    assert one["p"] == other["p"]
    assert one["difference"] == -other["difference"] == pytest.approx(7 / 50)


# ---- given by what each gets wrong


@pytest.mark.parametrize(
    ("first", "second", "only_first", "only_second", "p"),
    [
        # 0 and 1 are wrong in both; the first alone is wrong at 2, 3, 4, 5, the second alone at 9
        ([0, 1, 2, 3, 4, 5], [0, 1, 9], 1, 4, 2 * (1 + 5) / 2**5),
        ([9, 1, 0], [5, 4, 3, 2, 1, 0], 4, 1, 2 * (1 + 5) / 2**5),
        ([], [7], 1, 0, 1.0),
        ([3], [], 0, 1, 1.0),
        ([], [], 0, 0, 1.0),
        ([4, 6], [4, 6], 0, 0, 1.0),
    ],
)
def test_classifiers_given_by_their_errors(first, second, only_first, only_second, p):
    test = mcnemar_of_errors(first, second, 10)
    assert (test["only_first"], test["only_second"]) == (only_first, only_second)
    assert test["difference"] == pytest.approx((only_second - only_first) / 10)
    assert test["p"] == pytest.approx(p)


def test_errors_and_answers_make_the_same_test():
    first, second = answers(30, 4, 11, 5)
    wrong = [(~right).nonzero().flatten().tolist() for right in (first, second)]
    assert mcnemar_of_errors(*wrong, 50) == mcnemar(first, second)


def test_an_error_beyond_the_samples_is_refused():
    with pytest.raises(IndexError):
        mcnemar_of_errors([0], [50], 50)


# ---- areas under the ROC curve


def scored(number, *, ties=False, seed=0):
    """Scores [N] that are larger for positives, and labels [N]."""
    draw = torch.Generator().manual_seed(seed)
    labels = (torch.rand(number, generator=draw) < 0.3).long()
    scores = torch.randn(number, generator=draw) + 0.8 * labels
    return (scores.mul(2).round() if ties else scores), labels


def area(scores, labels):
    """torchmetrics' area, of scores mapped into [0, 1], which it leaves as they are."""
    return binary_auroc(scores.sigmoid(), labels).item()


def delong(scores, labels):
    """Covariance [P, P] of the areas of scores [P, N], by DeLong, DeLong, Clarke-Pearson, 1988: that of the means over
    the other class of 1{x > y} + 1{x = y}/2."""
    positive, negative = scores[:, labels == 1].double(), scores[:, labels == 0].double()
    wins = (positive[:, :, None] > negative[:, None]).double() + 0.5 * (positive[:, :, None] == negative[:, None])
    of_positives, of_negatives = wins.mean(2), wins.mean(1)
    return of_positives.cov() / positive.shape[1] + of_negatives.cov() / negative.shape[1]


def test_a_resample_is_the_area_of_the_samples_that_were_drawn():
    scores, labels = torch.stack([scored(40)[0], scored(40, ties=True)[0]]), scored(40)[1]
    rows = torch.randint(40, (300, 40), generator=torch.Generator().manual_seed(7))
    areas = bootstrap_auroc(scores, labels, resamples=300, seed=7)
    assert areas.dtype == torch.float64
    for r in (0, 1, 249, 250, 299):
        for p in range(2):
            assert areas[r, p].item() == pytest.approx(area(scores[p, rows[r]], labels[rows[r]]), abs=1e-6)


def test_pooled_scores_are_drawn_with_their_sample():
    labels = scored(30)[1]
    pooled = torch.stack([scored(30, seed=seed)[0] for seed in range(3)])
    rows = torch.randint(30, (5, 30), generator=torch.Generator().manual_seed(0))
    areas = bootstrap_auroc(pooled[None], labels, resamples=5)
    for r in range(5):
        assert areas[r, 0].item() == pytest.approx(area(pooled[:, rows[r]].flatten(), labels[rows[r]].repeat(3)))


def test_the_bootstrap_agrees_with_delong_alone_and_in_pairs():
    first, labels = scored(600)
    second = first + 0.5 * torch.randn(600, generator=torch.Generator().manual_seed(1))
    scores = torch.stack([first, second])
    areas, exact = bootstrap_auroc(scores, labels), delong(scores, labels)
    for drawn, expected in zip(areas.var(0), exact.diag(), strict=True):
        assert drawn.item() == pytest.approx(expected.item(), rel=0.1)
    difference = exact[0, 0] + exact[1, 1] - 2 * exact[0, 1]
    assert (areas[:, 0] - areas[:, 1]).var().item() == pytest.approx(difference.item(), rel=0.1)
    assert difference < 0.5 * exact[0, 0]  # pairs tell more


def test_draws_depend_on_the_seed_alone():
    scores, labels = scored(50)
    first, again, other = (bootstrap_auroc(scores[None], labels, resamples=20, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_resample_of_one_class_is_left_out():
    scores, labels = torch.tensor([[0.1, 0.2, 0.9]]), torch.tensor([0, 0, 1])
    areas = bootstrap_auroc(scores, labels, resamples=200)
    assert 0 < areas.isnan().sum() < 200
    assert interval(areas[:, 0]) == (1.0, 1.0)


@pytest.mark.parametrize(("level", "expected"), [(0.95, (2.5, 97.5)), (0.5, (25, 75))])
def test_interval(level, expected):
    draws = torch.arange(101, dtype=torch.float64)[torch.randperm(101, generator=torch.Generator().manual_seed(0))]
    assert interval(draws, level) == pytest.approx(expected)
