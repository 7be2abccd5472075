import pytest
import torch
from scipy.stats import binom

from dise.tasks.statistics import mcnemar, mcnemar_of_errors


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
