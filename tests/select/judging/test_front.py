import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dise.select import pareto_front, prune


def test_the_front_of_five_points_by_hand():
    price, risk = [4, 1, 2, 3, 9], [0.1, 0.5, 0.6, 0.2, 0.1]
    assert pareto_front(price, risk) == [1, 3, 0]  # 2 is beaten by 1, and 4 by 0


def test_of_equal_points_the_first_stays():
    assert pareto_front([1, 1, 1], [0.5, 0.5, 0.4]) == [2]
    assert pareto_front([2, 2], [0.1, 0.1]) == [0]


def test_nan_is_never_on_the_front():
    assert pareto_front([1.0, float("nan"), 3.0], [0.5, 0.0, float("nan")]) == [0]
    assert pareto_front([], []) == []


numbers = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12)


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(points=numbers)
def test_the_front_is_what_nothing_beats(points):
    def beats(a, b):
        return a[0] <= b[0] and a[1] <= b[1] and a != b

    front = pareto_front(*zip(*points, strict=True))
    expected = {p for p in points if not any(beats(q, p) for q in points)}
    assert [points[i] for i in front] == sorted(expected)


def test_as_many_prices_as_risks():
    with pytest.raises(ValueError, match="price, risk: expected as many of one as of the other, got 2 and 1"):
        pareto_front([1, 2], [0.5])


def test_pruning_keeps_the_front_and_the_reference(make_costs):
    """Of four samples Euler gets 1 right, Euler(2) none, RK4 3, and DOPRI 3 as well at a higher price."""
    adequate = torch.tensor([[1, 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0]]).bool()
    costs = make_costs([[1, 2, 4, 14]], adequate, candidates=("a", "b", "c", "d"))
    assert prune(costs).candidates == ("a", "c", "d")
    assert prune(costs.take_candidates([0, 2])).candidates == ("a", "c")
