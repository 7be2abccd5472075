"""Stage-merged execution: every sample as if it had been alone, in as many calls of f as the slowest needs."""

import pytest
import torch
from torch.testing import assert_close

from dise import RK4, Cascade, Dopri5, Dynamic, Euler, Multistep, MultistepTable, SolveError, Status, solve

CANDIDATES = (
    Euler(1),
    Euler(3),
    RK4(2),
    Dopri5(rtol=1e-3, atol=1e-3),
    Dopri5(rtol=1e-6, atol=1e-6, first_step="span"),
)
MIXES = {
    "one each": [3, 1, 0, 4, 2],
    "all the first": [0, 0, 0, 0, 0],
    "all adaptive": [3, 3, 3, 3, 3],
    "fixed only": [2, 0, 1, 0, 2],
    "some get none": [4, 0, 0, 4, 0],
    "adaptive against fixed": [3, 2, 3, 2, 2],
}
mixes = pytest.mark.parametrize("choice", MIXES.values(), ids=MIXES)


def alone(f, y0, t0, t1, choice, i, **options):
    """Sample i solved by itself with its candidate."""
    return solve(f, y0[i : i + 1], t0[i], t1[i], CANDIDATES[choice[i]], **options)


def spans(count, dtype):
    """Spans of several lengths, every third backwards."""
    t0 = torch.linspace(0, 0.5, count, dtype=dtype)
    length = torch.linspace(0.3, 1.2, count, dtype=dtype)
    length[::3] *= -1
    return t0, t0 + length


# ---- the result


@pytest.mark.parametrize(
    ("kind", "dtype", "tolerance"),
    [
        ("vector", torch.float64, 1e-12),
        ("image", torch.float64, 1e-12),
        ("vector", torch.float32, 1e-6),
        # a convolution rounds a sample differently beside others; DOPRI's first step has an error estimate of about
        # that rounding, so its next step differs, and the states by as much as rtol allows
        ("image", torch.float32, 1e-3),
    ],
)
@mixes
def test_equals_solving_every_sample_alone(tanh_field, conv_field, starts, assign, kind, dtype, tolerance, choice):
    f = conv_field(dtype) if kind == "image" else tanh_field(3, dtype=dtype)
    y0 = starts(5, 2, 4, 4, dtype=dtype) if kind == "image" else starts(5, 3, dtype=dtype)
    t0, t1 = spans(5, dtype)
    merged = solve(f, y0, t0, t1, Dynamic(CANDIDATES, assign(choice, 5)))
    singles = [alone(f, y0, t0, t1, choice, i) for i in range(5)]
    assert_close(merged.y, torch.cat([one.y for one in singles]), rtol=tolerance, atol=tolerance)
    assert merged.choice.tolist() == choice
    if tolerance == 1e-3:
        return
    for name in ("t", "nfe", "n_steps", "n_accepted", "status"):
        assert torch.equal(getattr(merged, name), torch.cat([getattr(one, name) for one in singles])), name
    # the error estimate is a small difference of large numbers
    expected = torch.cat([one.error for one in singles])
    assert_close(merged.error, expected, rtol=1e3 * tolerance, atol=1e3 * tolerance, equal_nan=True)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_euler_and_rk4_of_a_decay_by_hand(assign, steps):
    choice, h = [0, 1, 0, 1], 1 / steps
    y0 = torch.tensor([1.0, 1.0, -2.0, 3.0], dtype=torch.float64)[:, None]
    solution = solve(lambda t, y: -y, y0, 0.0, 1.0, Dynamic((Euler(steps), RK4(steps)), assign(choice, 2)))
    euler, rk4 = (1 - h) ** steps, (1 - h + h**2 / 2 - h**3 / 6 + h**4 / 24) ** steps
    factor = torch.tensor([euler, rk4, euler, rk4], dtype=torch.float64)[:, None]
    assert_close(solution.y, factor * y0, rtol=1e-14, atol=0)
    assert solution.nfe.tolist() == [steps, 4 * steps, steps, 4 * steps]


def test_accumulate_is_summed_over_each_samples_own_steps(tanh_field, starts, assign):
    f, y0, choice = tanh_field(3), starts(5, 3), MIXES["one each"]
    t0, t1 = spans(5, torch.float64)

    def length(step):
        return step.dt.abs()

    merged = solve(f, y0, t0, t1, Dynamic(CANDIDATES, assign(choice, 5)), accumulate=length)
    assert_close(merged.accumulated, (t1 - t0).abs())


# ---- the number of calls


@mixes
def test_calls_are_the_maximum_and_rows_the_sum(tanh_field, starts, assign, record, choice):
    y0, (t0, t1) = starts(5, 3), spans(5, torch.float64)
    f = record(tanh_field(3))
    merged = solve(f, y0, t0, t1, Dynamic(CANDIDATES, assign(choice, 5)))
    calls = [alone(tanh_field(3), y0, t0, t1, choice, i).calls for i in range(5)]
    assert merged.calls == f.calls == max(calls)
    # k1 is evaluated once for all: were each group to evaluate its own, f would get B more rows than NFE says
    assert f.rows == merged.nfe.sum()
    assert torch.equal(f.times[0], t0)


@pytest.mark.parametrize("rule", [Dynamic, Cascade], ids=lambda kind: kind.__name__)
def test_a_table_whose_first_time_is_not_the_start_needs_one_evaluation_more(rule, tanh_field, starts, assign, record):
    """The policy has evaluated f at the start, of which the table makes no use."""
    later = Multistep(MultistepTable((0.1, 0.5), (1.0, 1.0, 1.0), ((), (0.5,), (0.5, 0.5))))
    f, y0 = record(tanh_field(3)), starts(4, 3)
    alone = solve(f, y0, 0.0, 1.0, later)
    assert alone.nfe.tolist() == alone.n_steps.tolist() == [2] * 4
    f = record(tanh_field(3))
    decision = assign([0, 1, 1, 0], 2) if rule is Dynamic else lambda end: torch.arange(4) % 2 > 0
    solution = solve(f, y0, 0.0, 1.0, rule((later, Euler()), decision))
    assert f.rows == solution.nfe.sum()
    assert solution.n_steps[solution.choice == 0].tolist() == [2, 2]


def test_the_selector_costs_no_call(tanh_field, starts, assign, record):
    f = record(tanh_field(3))
    solution = solve(f, starts(4, 3), 0.0, 1.0, Dynamic((Euler(),), assign([0] * 4, 1)))
    assert (f.calls, f.rows, solution.nfe.tolist()) == (1, 4, [1] * 4)


def test_compact_false_shows_f_all_samples_always(tanh_field, starts, assign, record):
    # what `solve` says of drop_finished=False: "f always gets all samples"
    f = record(tanh_field(3))
    solve(f, starts(5, 3), 0.0, 1.0, Dynamic(CANDIDATES, assign(MIXES["one each"], 5)), drop_finished=False)
    assert {len(t) for t in f.times} == {5}


# ---- the choice


def test_the_smallest_score_wins(starts):
    scores = torch.tensor([[3.0, 1.0, 2.0], [-1.0, 5.0, 0.0], [0.0, 0.0, -1e-6]])
    dynamic = Dynamic((Euler(1), Euler(2), Euler(3)), lambda h0, k1: scores)
    solution = solve(lambda t, y: -y, starts(3, 2), 0.0, 1.0, dynamic)
    assert solution.choice.tolist() == [1, 0, 2]
    assert solution.nfe.tolist() == [2, 1, 3]


def test_the_selector_sees_start_and_first_stage(starts, tanh_field):
    f, y0, seen = tanh_field(3), starts(4, 3), {}

    def selector(h0, k1):
        seen.update(h0=h0, k1=k1)
        return torch.zeros(4, 1)

    t0 = torch.linspace(0, 1, 4, dtype=torch.float64)
    solve(f, y0, t0, 2.0, Dynamic((Euler(),), selector))
    assert torch.equal(seen["h0"], y0)
    assert_close(seen["k1"], f(t0[:, None], y0))


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("scores", "winner"),
    [([NAN, 1.0, 2.0], 1), ([5.0, NAN, NAN], 0), ([NAN, INF, NAN], 1), ([NAN, 9.0, -INF], 2), ([3e38, NAN, INF], 0)],
)
def test_nan_never_wins(starts, scores, winner):
    dynamic = Dynamic((Euler(1), Euler(2), Euler(3)), lambda h0, k1: torch.tensor([scores]))
    assert solve(lambda t, y: -y, starts(1, 2), 0.0, 1.0, dynamic).choice.tolist() == [winner]


@pytest.mark.parametrize("shape", [(4,), (4, 2), (4, 4), (3, 3), (1, 3), (4, 3, 1), ()])
def test_scores_of_another_shape(starts, shape):
    dynamic = Dynamic((Euler(), RK4(), Dopri5()), lambda h0, k1: torch.zeros(shape))
    with pytest.raises(ValueError, match=r"selector: expected scores of shape \(4, 3\), got "):
        solve(lambda t, y: -y, starts(4, 2), 0.0, 1.0, dynamic)


def test_scores_on_another_device(starts):
    y0 = starts(4, 2)
    dynamic = Dynamic((Euler(1), Euler(2)), lambda h0, k1: torch.ones(len(h0), 2, device="meta"))
    with pytest.raises(ValueError, match=f"selector: expected scores on {y0.device} like the state, got them on meta"):
        solve(lambda t, y: -y, y0, 0.0, 1.0, dynamic)


def test_unbatched_problems_have_nothing_to_choose_for(starts, assign):
    with pytest.raises(ValueError, match="batched: Dynamic chooses for each sample"):
        solve(lambda t, y: -y, starts(4, 2), 0.0, 1.0, Dynamic((Euler(),), assign([0] * 4, 1)), batched=False)


# ---- one choice for a batch


def test_a_batch_gets_the_candidate_of_the_smallest_mean_score(starts):
    scores = torch.tensor([[0.0, 2.0], [0.0, 2.0], [9.0, 2.0]])  # two of three samples alone would get the first
    dynamic = Dynamic((Euler(1), Euler(2)), lambda h0, k1: scores, granularity="batch")
    solution = solve(lambda t, y: -y, starts(3, 2), 0.0, 1.0, dynamic)
    assert solution.choice.tolist() == [1, 1, 1]
    assert solution.nfe.tolist() == [2, 2, 2]


@pytest.mark.parametrize("rows", [1, 4])
def test_one_system_gets_one_candidate(tanh_field, starts, rows):
    f, y0, seen = tanh_field(3), starts(4, 3), []

    def selector(h0, k1):
        seen.append(h0)
        return torch.tensor([[1.0, 0.0]]).expand(rows, 2)

    dynamic = Dynamic((Euler(1), Dopri5()), selector, granularity="batch")
    solution = solve(f, y0, 0.0, 1.0, dynamic, batched=False)
    alone = solve(f, y0, 0.0, 1.0, Dopri5(), batched=False)
    assert torch.equal(solution.y, alone.y)
    assert (int(solution.choice), int(solution.nfe)) == (1, int(alone.nfe))
    assert torch.equal(seen[0], y0)


def test_an_unknown_granularity():
    with pytest.raises(ValueError, match="granularity: expected 'sample' or 'batch', got 'row'"):
        Dynamic((Euler(),), lambda h0, k1: None, granularity="row")


@pytest.mark.parametrize("candidates", [(), [], (Euler(), "rk4"), (Euler,)])
def test_candidates_are_integrators(candidates):
    with pytest.raises(ValueError, match="candidates: expected at least one integrator"):
        Dynamic(candidates, lambda h0, k1: None)


def test_a_dynamic_integrator_says_what_it_chooses_from():
    assert str(Dynamic((Euler(), RK4(2), Dopri5()), lambda h0, k1: None)) == "Dynamic(Euler, RK4(steps=2), Dopri5)"


# ---- gradients


def test_gradients_are_those_of_solving_alone(tanh_field, starts, assign):
    choice = MIXES["one each"]
    t0, t1 = spans(5, torch.float64)

    def gradients(run):
        f, y0 = tanh_field(3), starts(5, 3).requires_grad_()
        run(f, y0).square().sum().backward()
        return [y0.grad, *(p.grad for p in f.parameters())]

    merged = gradients(lambda f, y0: solve(f, y0, t0, t1, Dynamic(CANDIDATES, assign(choice, 5))).y)
    singles = gradients(lambda f, y0: torch.cat([alone(f, y0, t0, t1, choice, i).y for i in range(5)]))
    assert_close(merged, singles, rtol=1e-10, atol=1e-10)


def test_the_selector_is_asked_without_gradients(starts):
    enabled = []

    def selector(h0, k1):
        enabled.append(torch.is_grad_enabled())
        return torch.zeros(3, 2)

    y0 = starts(3, 2).requires_grad_()
    solve(lambda t, y: -y, y0, 0.0, 1.0, Dynamic((Euler(), RK4()), selector)).y.sum().backward()
    assert enabled == [False]
    # one Euler step of y' = -y ends at 0 wherever it starts
    assert torch.equal(y0.grad, torch.zeros(3, 2, dtype=torch.float64))


# ---- samples without a span


def test_samples_of_zero_length_stay_and_cost_nothing(tanh_field, starts, assign, record):
    y0, choice = starts(5, 3), MIXES["one each"]
    t0 = torch.linspace(0, 1, 5, dtype=torch.float64)
    t1 = t0 + 1
    t1[[1, 3]] = t0[[1, 3]]
    moving = [0, 2, 4]
    f = record(tanh_field(3))
    # the selector is asked for the moving samples alone
    solution = solve(f, y0, t0, t1, Dynamic(CANDIDATES, assign([choice[i] for i in moving], 5)))
    assert torch.equal(solution.y[[1, 3]], y0[[1, 3]])
    assert solution.nfe[[1, 3]].tolist() == [0, 0]
    assert solution.choice.tolist() == [3, -1, 0, -1, 2]
    expected = torch.cat([alone(tanh_field(3), y0, t0, t1, choice, i).y for i in moving])
    assert_close(solution.y[moving], expected, rtol=1e-12, atol=1e-12)
    assert f.rows == solution.nfe.sum()


@pytest.mark.parametrize("count", [0, 3])
def test_a_batch_in_which_nothing_moves_still_has_choices(tanh_field, starts, assign, count):
    y0 = starts(3, 3)[:count]
    dynamic = Dynamic(CANDIDATES, assign(torch.zeros(0, dtype=torch.int64), 5))
    solution = solve(tanh_field(3), y0, 0.0, 0.0 if count else 1.0, dynamic)
    assert torch.equal(solution.y, y0)
    assert solution.nfe.tolist() == [0] * count
    # as where some move: the integrator is one that chooses, so there is a choice, and it is -1 where none was made
    assert solution.choice is not None
    assert solution.choice.tolist() == [-1] * count


# ---- samples that fail


HEALTHY, FAILS_LATER, FAILS_AT_ONCE = 0.0, 1.0, 2.0


def flagged(t, y):
    """y' = -y of all features but the last, which is a flag: NaN from t = 0.5 on, or always."""
    flag = y[:, -1:]
    nan = (flag == FAILS_AT_ONCE) | ((flag == FAILS_LATER) & (t > 0.5))
    return torch.where(nan, torch.nan, torch.cat([-y[:, :-1], 0 * flag], 1))


@pytest.mark.parametrize("flag", [FAILS_LATER, FAILS_AT_ONCE, INF, NAN], ids=["later", "at once", "infinite", "nan"])
@pytest.mark.parametrize("bad", range(5))
def test_a_failing_sample_leaves_the_others_alone(starts, assign, bad, flag):
    choice = MIXES["one each"] * 2  # another sample stands beside the failing one in its group
    y0 = torch.cat([starts(10, 2), torch.full((10, 1), HEALTHY, dtype=torch.float64)], 1)
    dynamic = Dynamic(CANDIDATES, assign(choice, 5))
    healthy = solve(flagged, y0, 0.0, 2.0, dynamic)
    y0[bad, -1] = flag
    solution = solve(flagged, y0, 0.0, 2.0, dynamic, throw=False)
    others = [i for i in range(10) if i != bad]
    assert_close(solution.y[others], healthy.y[others], rtol=1e-14, atol=0)
    assert torch.equal(solution.nfe[others], healthy.nfe[others])
    assert (solution.status[others] == Status.SUCCESS).all()
    # a single Euler step never looks beyond the start
    fails = not (flag == FAILS_LATER and choice[bad] == 0)
    assert (solution.status[bad] == Status.NON_FINITE) == fails


def test_the_error_names_the_sample_of_the_batch(starts, assign):
    y0 = torch.cat([starts(5, 2), torch.tensor([[0.0], [0], [0], [FAILS_AT_ONCE], [0]], dtype=torch.float64)], 1)
    with pytest.raises(SolveError, match=r"1 of 5 samples failed; first: sample 3 at t=0 .*NON_FINITE"):
        solve(flagged, y0, 0.0, 2.0, Dynamic(CANDIDATES, assign(MIXES["one each"], 5)))


# ---- arguments, structure


@mixes
def test_sample_args_stand_beside_their_samples(starts, assign, choice):
    rate = torch.tensor([0.5, -1.0, 2.0, 3.0, 0.1], dtype=torch.float64)
    name = torch.arange(5)
    y0 = torch.stack([starts(5)[:], name.double()], 1)

    def f(t, y, rate, name):
        assert torch.equal(y[:, 1], name.double())
        return torch.stack([-rate * y[:, 0], torch.zeros_like(rate)], 1)

    dynamic = Dynamic(CANDIDATES, assign(choice, 5))
    solution = solve(f, y0, 0.0, 1.0, dynamic, sample_args=(rate, name))
    for i, index in enumerate(choice):
        one = solve(f, y0[i : i + 1], 0.0, 1.0, CANDIDATES[index], sample_args=(rate[i : i + 1], name[i : i + 1]))
        assert_close(solution.y[i], one.y[0], rtol=1e-12, atol=0)


def test_a_tuple_states_tensors_reach_the_selector_joined(starts):
    seen = []

    def selector(h0, k1):
        seen.extend((h0, k1))
        return torch.tensor([[0.0, 1.0]]).repeat(3, 1)

    y0 = (starts(3, 2, 4), starts(3))
    solution = solve(lambda t, y: (-y[0], -y[1]), y0, 0.0, 1.0, Dynamic((Euler(2), RK4()), selector))
    h0 = torch.cat([y0[0].flatten(1), y0[1][:, None]], 1)
    assert_close(seen, [h0, -h0])
    assert_close(solution.y, (y0[0] / 4, y0[1] / 4))


def test_dynamic_in_a_block(toy_model, assign):
    block, x = toy_model[1], torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    block.integrator = Dynamic((Euler(2), RK4()), assign([1, 0, 1], 2))
    with block.recording() as records:
        output = toy_model(x)
    assert_close(output, 6 * x * torch.tensor([0.375, 0.25, 0.375])[:, None])
    assert records[0].solution.choice.tolist() == [1, 0, 1]
    assert records[0].solution.nfe.tolist() == [4, 2, 4]
    assert "Dynamic(Euler(steps=2), RK4)" in repr(block)


def test_a_candidate_may_itself_choose(conv_field, starts, assign, record):
    y0, seen = starts(5, 2, 4, 4), []
    inner_choice, outer_choice = assign([1, 0, 1], 2), assign([1, 0, 1, 0, 1], 2)

    def inner(h0, k1):
        seen.append((h0, k1))
        return inner_choice(h0, k1)

    nested = Dynamic((Euler(1), Dynamic((RK4(2), Dopri5()), inner)), outer_choice)
    f = record(conv_field())
    solution = solve(f, y0, 0.0, 1.0, nested)
    flat = [Dopri5(), Euler(1), RK4(2), Euler(1), Dopri5()]
    singles = [solve(conv_field(), y0[i : i + 1], 0.0, 1.0, candidate) for i, candidate in enumerate(flat)]
    ((h0, k1),) = seen
    assert torch.equal(h0, y0[[0, 2, 4]])
    assert k1.shape == h0.shape
    assert_close(solution.y, torch.cat([one.y for one in singles]), rtol=1e-12, atol=1e-12)
    assert torch.equal(solution.nfe, torch.cat([one.nfe for one in singles]))
    assert solution.choice.tolist() == [1, 0, 1, 0, 1]
    assert f.calls == max(one.calls for one in singles)
    assert f.rows == solution.nfe.sum()
