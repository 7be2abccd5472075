import pytest
import torch

from dise import RK4, Dopri5, Euler
from dise.select import ClassificationCost, Costs, TaskErrorCost, diagnose

N = 1000


def right(*shares):
    """[N, K]: candidate i is right on the first shares[i] · N samples."""
    return torch.arange(N)[:, None] < torch.tensor([round(share * N) for share in shares])


def everything_to(index, samples=N):
    return torch.full((samples,), index)


# ---- no collapse


@pytest.mark.parametrize(
    "choice",
    [
        torch.arange(N) % 3,
        (torch.arange(N) < 980).long(),
        torch.zeros(0, dtype=torch.int64),
    ],
    ids=["mixed", "98 %", "no samples"],
)
def test_no_message_without_collapse(make_costs, choice):
    assert diagnose(choice, make_costs([[1, 4, 14]], right(0.9, 0.95, 1.0))) is None


def test_no_message_with_one_candidate(make_costs):
    assert diagnose(everything_to(0), make_costs([[1]], right(0.9))) is None


def test_collapse_begins_at_99_percent(make_costs):
    costs = make_costs([[1, 4, 14]], right(0.9, 0.95, 1.0))
    message = diagnose((torch.arange(N) >= 990).long(), costs)
    assert message.startswith("Euler gets 99.0% of the samples. ")


# ---- the reasons


def test_data_where_the_winner_is_the_cheapest_adequate_one_nearly_always(make_costs):
    message = diagnose(everything_to(0), make_costs([[1, 4, 14]], right(0.995, 0.999, 1.0)))
    assert message.startswith("Euler gets 100.0% of the samples. Data: ")
    assert "99.5% of the 1000 samples" in message
    assert "held-out" in message


@pytest.mark.parametrize(
    ("other", "nfe", "bound"),
    # design notes, 2.9: Euler beats DOPRI-14 where it is right 0.826 times as often, RK4 where 0.926 times
    [(Dopri5(), 14, "0.826"), (RK4(), 4, "0.926")],
    ids=["DOPRI", "RK4"],
)
def test_break_even_of_the_papers_settings(make_costs, other, nfe, bound):
    message = diagnose(everything_to(1), make_costs([[1, nfe]], right(0.5, 1.0), candidates=(Euler(), other)))
    assert f"Euler beats {other} where it is right at least {bound} times as often" in message
    assert "on the data it is right 0.500 times as often" in message


def test_break_even_of_other_settings_by_hand(make_costs):
    # (√100 − √9) / (√100 − √4) = 7/8
    costs = make_costs([[4, 9]], right(0.5, 1.0), rule=ClassificationCost(alpha=0.5, M=100))
    assert "at least 0.875 times" in diagnose(everything_to(1), costs)


def test_break_even_takes_the_mean_of_varying_nfe(make_costs):
    # DOPRI costs 4 or 16, hence √ 2 or 4, mean 3: (√100 − 3) / (√100 − 1) = 7/9
    nfe = torch.tensor([[1, 4], [1, 16]]).repeat(N // 2, 1)
    costs = make_costs(nfe, right(0.5, 1.0), rule=ClassificationCost(alpha=0.5, M=100))
    assert "at least 0.778 times" in diagnose(everything_to(1), costs)


def test_break_even_of_eq5_takes_the_prices_of_adequate_results_alone():
    # Euler costs √(4 · 0.25) where it is adequate, DOPRI √(16 · 0.5625): (√100 − 3) / (√100 − 1) = 7/9
    rule = TaskErrorCost(0.5, 100, task_error=torch.sub, beta=1.0, resolution=0.25)
    error = torch.stack([torch.where(torch.arange(N) < N // 2, 0.25, 50.0), torch.full((N,), 0.5625)], 1)
    h0 = torch.zeros(N, 1)
    costs = Costs((Euler(), Dopri5()), h0, h0, torch.tensor([4, 16]).expand(N, 2), error, rule)
    message = diagnose(everything_to(1), costs)
    assert "at least 0.778 times as often; on the data it is right 0.500 times as often" in message


TOO_SMALL, TOO_LARGE, CANNOT_TELL = "too small", "so large", "cannot tell the samples apart"


@pytest.mark.parametrize(
    ("winner", "euler", "reason"),
    [
        (0, 0.90, TOO_SMALL),  # 0.90 > 0.826: the saving outweighs ten errors in a hundred
        (1, 0.80, TOO_LARGE),  # 0.80 < 0.826: an error outweighs the saving
        (1, 0.90, CANNOT_TELL),  # Euler would have paid on average, and yet it is never chosen
        (0, 0.80, CANNOT_TELL),
    ],
)
def test_reason(make_costs, winner, euler, reason):
    costs = make_costs([[1, 14]], right(euler, 1.0), candidates=(Euler(), Dopri5()))
    message = diagnose(everything_to(winner), costs)
    assert [text for text in (TOO_SMALL, TOO_LARGE, CANNOT_TELL) if text in message] == [reason]
    assert ("raise M" in message) == (reason == TOO_SMALL)
    assert ("lower M" in message) == (reason == TOO_LARGE)


def test_every_other_candidate_is_compared_with_the_winner(make_costs):
    message = diagnose(everything_to(2), make_costs([[1, 4, 14]], right(0.5, 0.6, 1.0)))
    assert message.startswith("Dopri5 gets 100.0%")
    assert "Euler beats Dopri5" in message
    assert "RK4 beats Dopri5" in message
    assert "Euler beats RK4" not in message


def test_candidates_that_nothing_speaks_for_are_left_out(make_costs):
    candidates = (Euler(), Euler(2), RK4(), RK4(2), Dopri5())
    costs = make_costs([[1, 2, 4, 8, 14]], right(0, 0.5, 0.9, 0.9, 1.0), candidates=candidates)
    message = diagnose(everything_to(2), costs)
    assert "Euler(steps=2) beats RK4" in message
    assert "RK4 beats Dopri5" in message
    assert message.count("beats") == 2  # Euler is never right; two steps of RK4 are dearer and no better


def test_a_winner_without_rivals(make_costs):
    """Right where Euler is, too, and no oftener than RK4: on each half another candidate is."""
    half = torch.arange(N)[:, None] < N // 2
    costs = make_costs([[1, 4]], torch.cat([half, ~half], 1), candidates=(Euler(), RK4()))
    assert diagnose(everything_to(0), costs) == (
        "Euler gets 100.0% of the samples. Data: no other candidate is right more often, or cheaper and ever right."
    )


@pytest.mark.parametrize("euler", [0.3, 0.7, 0.82, 0.83, 0.95])
@pytest.mark.parametrize("M", [20, 1000, 1e6])
def test_a_selector_that_knows_only_mean_costs_is_never_told_to_look_at_the_data(make_costs, euler, M):
    # Such a selector chooses by M and α alone, so they must be what is named, and in the right direction.
    costs = make_costs([[1, 14]], right(euler, 1.0), rule=ClassificationCost(M=M), candidates=(Euler(), Dopri5()))
    winner = int(costs.cost.mean(0).argmin())
    message = diagnose(everything_to(winner), costs)
    assert (TOO_LARGE if winner else TOO_SMALL) in message


def test_following_the_advice_moves_the_break_even_past_the_data(make_costs):
    options = {"candidates": (Euler(), Dopri5())}
    for M, alpha in ((100, 0.3), (1000, 0.1)):  # both lower than what made the message: "lower M, or alpha"
        rule = ClassificationCost(alpha=alpha, M=M)
        costs = make_costs([[1, 14]], right(0.80, 1.0), rule=rule, **options)
        assert int(costs.cost.mean(0).argmin()) == 0


@pytest.mark.parametrize("index", [-1, 3])
def test_a_choice_beyond_the_candidates_is_named(make_costs, index):
    with pytest.raises(ValueError, match="choice: expected indices of 3 candidates"):
        diagnose(torch.full((N,), index), make_costs([[1, 4, 14]], right(0.9, 0.95, 1.0)))
