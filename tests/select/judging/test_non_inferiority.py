from itertools import pairwise

import pytest
import torch
from scipy.stats import binom

from dise.select import loss_bound
from dise.select.judging.non_inferiority import _score


def pairs(lost, won, number):
    """Results of the reference and of a policy that alone fails on `lost` samples and alone succeeds on `won`."""
    reference, policy = torch.ones(2, number, dtype=torch.bool)
    policy[:lost] = False
    reference[lost : lost + won] = False
    return reference, policy


@pytest.mark.parametrize(
    ("first", "second", "number", "low", "high"),
    [
        # Tango's interval in Fagerland, Lydersen, Laake, Recommended tests and confidence intervals for paired binomial
        # proportions, 2014 (airway hyper-responsiveness), and in the tests of their R package contingencytables
        (1, 7, 21, -0.517, -0.026),
        (6, 16, 161, -0.1240, -0.0054),
    ],
)
def test_published_intervals(first, second, number, low, high):
    """Two-sided 95 % intervals are two one-sided ones of 97.5 %."""
    digits = 5e-4 if number == 21 else 5e-5
    assert loss_bound(*pairs(first, second, number), confidence=0.975) == pytest.approx(high, abs=digits)
    assert -loss_bound(*pairs(second, first, number), confidence=0.975) == pytest.approx(low, abs=digits)


def test_without_a_difference_the_bound_is_wilsons():
    """No sample differs: z²/(n + z²), the upper limit of Wilson's interval for none of n."""
    z2 = 1.6448536269514722**2
    assert loss_bound(*pairs(0, 0, 2702)) == pytest.approx(z2 / (2702 + z2))
    assert loss_bound(*pairs(0, 0, 2703)) < 1e-3 < loss_bound(*pairs(0, 0, 2702))


def test_results_that_both_have_or_lack_do_not_matter():
    reference, policy = pairs(3, 5, 400)
    reference[300:], policy[300:] = False, False
    assert loss_bound(reference, policy) == loss_bound(*pairs(3, 5, 400))


@pytest.mark.parametrize(("lost", "won", "number"), [(0, 0, 1), (1, 0, 1), (0, 1, 1), (5, 0, 5), (0, 5, 5)])
def test_extremes_stay_in_range(lost, won, number):
    bound = loss_bound(*pairs(lost, won, number))
    assert (lost - won) / number <= bound <= 1


def test_more_losses_raise_the_bound_and_more_wins_lower_it():
    bounds = [[loss_bound(*pairs(lost, won, 1000)) for won in range(5)] for lost in range(5)]
    columns = zip(*bounds, strict=True)
    assert all(low < high for row in bounds for high, low in pairwise(row))
    assert all(low < high for column in columns for low, high in pairwise(column))


@pytest.mark.parametrize("won", [0.0, 1e-4, 1e-3])
def test_the_test_keeps_its_level(won):
    """Of policies that truly lose 0.1 points 5 % pass, at 5,000 samples: an exact sum over all that can be drawn."""
    number, tolerance = 5000, 1e-3
    passed = 0.0
    for wins in range(20):
        # wins are binomial, and losses binomial among the rest
        of_rest = (won + tolerance) / (1 - won)
        lost = max((k for k in range(60) if _score(k, wins, number, tolerance) <= -1.6449), default=-1)
        passed += binom.pmf(wins, number, won) * binom.cdf(lost, number - wins, of_rest)
    assert 0.03 < passed < 0.0525


def test_no_samples():
    with pytest.raises(ValueError, match="reference: expected at least one sample"):
        loss_bound(torch.ones(0, dtype=torch.bool), torch.ones(0, dtype=torch.bool))


def test_results_of_other_samples_are_refused():
    """One result would be compared with each of a hundred."""
    for shape in ((1,), (100, 1)):
        with pytest.raises(ValueError, match=r"^policy: expected bool \[N\] with N = 100"):
            loss_bound(torch.ones(100, dtype=torch.bool), torch.ones(shape, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"^reference: expected bool \[N\], got torch.int64"):
        loss_bound(torch.ones(100, dtype=torch.int64), torch.ones(100, dtype=torch.bool))


@pytest.mark.parametrize("confidence", [95, 1.0, 0.5, 0.05])
def test_a_confidence_is_between_a_half_and_one(confidence):
    with pytest.raises(ValueError, match=r"^confidence: expected a number between 0.5 and 1"):
        loss_bound(*pairs(1, 1, 10), confidence=confidence)
