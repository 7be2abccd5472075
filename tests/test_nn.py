import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from dise import RK4, Backsolve, Cascade, Dopri5, Dynamic, Euler, Forecast, NeuralODE, SolveError, SolveOptions, solve


@pytest.fixture
def block(tanh_field):
    return NeuralODE(tanh_field(3), Dopri5(), t0=0.5, t1=2.0)


@pytest.fixture
def y0(starts):
    return starts(4, 3)


def test_forward_is_the_solution_of_the_same_problem(block, y0):
    expected = solve(block.f, y0, 0.5, 2.0, Dopri5()).y
    assert torch.equal(block(y0), expected)
    assert torch.equal(block.solve(y0).y, expected)


def test_the_span_is_0_to_1_by_default(tanh_field, y0):
    f = tanh_field(3)
    assert torch.equal(NeuralODE(f, RK4())(y0), solve(f, y0, 0.0, 1.0, RK4()).y)


def test_solve_passes_its_arguments_to_dise_solve(y0):
    class Field(nn.Module):
        def forward(self, t, y, gain, rate):
            return gain * rate * y

    rate = torch.tensor([[1.0], [2.0], [3.0], [4.0]], dtype=torch.float64)
    block = NeuralODE(Field(), Dopri5(rtol=1e-9, atol=1e-9))
    solution = block.solve(y0, args=(-0.5,), sample_args=(rate,), accumulate=lambda step: step.dt)
    torch.testing.assert_close(solution.y, y0 * torch.exp(-0.5 * rate), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(solution.accumulated, torch.ones(4, dtype=torch.float64))


@pytest.mark.parametrize(
    ("t0", "t1"),
    [
        (1.0, None),
        (None, 3.0),
        (2.0, 0.0),
        (0.0, 0.0),
        (torch.tensor([0.5, 0.0, 1.0, 2.0]), None),
        (None, torch.tensor([0.5, 3.0, 0.0, 1.0])),
        (torch.tensor([0.5, 0.0, 1.0, 2.0]), torch.tensor([0.5, 3.0, 0.0, 1.0])),
    ],
)
def test_t0_and_t1_replace_the_blocks_span(block, y0, t0, t1):
    start, end = 0.5 if t0 is None else t0, 2.0 if t1 is None else t1
    expected = solve(block.f, y0, start, end, Dopri5())
    assert torch.equal(block(y0, t0=t0, t1=t1), expected.y)
    solution = block.solve(y0, t0=t0, t1=t1)
    assert torch.equal(solution.nfe, expected.nfe)
    assert torch.equal(solution.t, torch.as_tensor(end, dtype=y0.dtype).expand(4))
    assert (block.t0, block.t1) == (0.5, 2.0)


def test_gradients_reach_t1(block, y0):
    """dy/dt1 = f(t1, y(t1))."""
    t1 = torch.tensor([1.0, 2.0, 0.25, 1.5], dtype=y0.dtype, requires_grad=True)
    block.integrator = Dopri5(rtol=1e-10, atol=1e-10)
    y = block(y0, t1=t1)
    (gradient,) = torch.autograd.grad(y.sum(), t1)
    torch.testing.assert_close(gradient, block.f(t1[:, None], y).sum(1), rtol=1e-6, atol=1e-6)


def test_the_integrator_can_be_exchanged(block, y0):
    block.integrator = Euler(3)
    assert torch.equal(block(y0), solve(block.f, y0, 0.5, 2.0, Euler(3)).y)


def test_unbatched_treats_the_batch_as_one_system(tanh_field, y0):
    block = NeuralODE(tanh_field(3), Dopri5(), batched=False)
    assert block.solve(y0).nfe.shape == ()
    assert torch.equal(block(y0), solve(block.f, y0, 0.0, 1.0, Dopri5(), batched=False).y)


@pytest.mark.parametrize("drop_finished", [True, False])
def test_drop_finished_is_passed_to_dise_solve(tanh_field, record, y0, drop_finished):
    class Counted(nn.Module):
        def __init__(self):
            super().__init__()
            self.count = record(tanh_field(3))

        def forward(self, t, y):
            return self.count(t, y)

    block = NeuralODE(Counted(), Dopri5(rtol=1e-6, atol=1e-6), drop_finished=drop_finished)
    block.solve(y0)  # a first solve also checks that f does not mix samples
    block.f.count.times.clear()
    solution = block.solve(y0)
    assert block.f.count.rows == (solution.nfe.sum() if drop_finished else 4 * solution.calls)


def test_the_first_stage_is_f_at_the_start(block, y0):
    seen = []
    k1 = block.first_stage(y0)
    assert torch.equal(k1, block.f(torch.full((4, 1), 0.5, dtype=y0.dtype), y0))
    block.solve(y0, accumulate=lambda step: seen.append(step) or step.dt)
    assert torch.equal(seen[0].stages[0], k1)


def test_the_first_stage_at_another_t0(block, y0):
    t0 = torch.tensor([0.0, 1.0, 2.0, 0.5], dtype=y0.dtype)
    assert torch.equal(block.first_stage(y0, t0=t0), block.f(t0[:, None], y0))
    assert torch.equal(block.first_stage(y0, t0=2.0), block.f(torch.full((4, 1), 2.0, dtype=y0.dtype), y0))


def test_the_state_dict_has_the_parameters_of_f_alone(block):
    assert list(block.state_dict()) == ["f.W", "f.b", "f.c"]
    assert {name for name, _ in block.named_parameters()} == {"f.W", "f.b", "f.c"}


class Scores(nn.Module):
    """A selector with parameters: K scores of a state [n, 3]."""

    def __init__(self, candidates):
        super().__init__()
        self.layer = nn.Linear(3, candidates, dtype=torch.float64)

    def forward(self, h0, k1):
        return self.layer(h0)


def test_a_policys_network_is_part_of_the_block(block):
    block.integrator = Dynamic((Euler(), RK4()), Scores(2))
    names = ["policy.selector.layer.weight", "policy.selector.layer.bias"]
    assert list(block.state_dict())[3:] == names
    block.to(torch.float32)
    assert block.integrator.selector.layer.weight.dtype == torch.float32
    block.eval()
    assert not block.integrator.selector.training


def test_a_policy_inside_a_policy_is_part_of_the_block(block):
    inner = Dynamic((Euler(), RK4()), Scores(2))
    block.integrator = Cascade((Euler(), inner), nn.Identity())
    assert block.get_submodule("policy.candidates.1.selector") is inner.selector
    assert "policy.accept" in dict(block.named_modules())


def test_an_exchanged_policy_leaves_nothing_in_the_block(block, y0):
    dynamic = Dynamic((Euler(), RK4()), Scores(2))
    block.integrator = dynamic
    with block.using(Euler()):
        assert list(block.state_dict()) == ["f.W", "f.b", "f.c"]
    assert block.policy.selector is dynamic.selector
    block.integrator = RK4()
    assert list(block.state_dict()) == ["f.W", "f.b", "f.c"]
    assert torch.equal(block(y0), solve(block.f, y0, 0.5, 2.0, RK4()).y)


def test_a_policys_weights_are_loaded_and_copied_with_the_model(tanh_field, y0):
    def dynamic_block(seed):
        torch.manual_seed(seed)
        return NeuralODE(tanh_field(3), Dynamic((Euler(), RK4(2)), Scores(2)))

    first, second = dynamic_block(1), dynamic_block(2)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(y0), second(y0))
    third = copy.deepcopy(first)
    assert third.integrator.selector is third.policy.selector
    assert third.integrator.selector is not first.integrator.selector
    assert torch.equal(first(y0), third(y0))


def test_gradients_reach_the_parameters(block, y0):
    block(y0).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in block.parameters())


def test_the_printed_block_names_integrator_span_and_options(block):
    assert "integrator=Dopri5, t0=0.5, t1=2.0" in str(block)
    assert "batched" not in str(block)
    block.options = replace(block.options, batched=False)
    assert "batched=False" in str(block)


# ---- recording


def test_recording_has_the_start_and_the_solution_of_each_solve(block, y0):
    model = nn.Sequential(nn.Identity(), block, block)
    with block.recording() as records:
        model(y0)
    assert [type(r.solution.nfe) for r in records] == [torch.Tensor] * 2
    assert torch.equal(records[0].y0, y0)
    assert torch.equal(records[1].y0, records[0].solution.y)
    block(y0)
    assert len(records) == 2  # nothing is recorded after the context


def test_recording_has_the_span_of_each_solve(block, y0):
    ends = torch.tensor([1.0, 2.0, 0.5, 1.5])
    with block.recording() as records:
        block(y0)
        block(y0, t0=1.0, t1=ends)
    assert [(r.t0, r.t1) for r in records] == [(0.5, 2.0), (1.0, ends)]
    assert torch.equal(block(records[1].y0, t0=records[1].t0, t1=records[1].t1), records[1].solution.y)


def test_an_inner_recording_is_separate(block, y0):
    with block.recording() as outer:
        block(y0)
        with block.recording() as inner:
            block(y0)
            block(y0)
        block(y0)
    assert (len(outer), len(inner)) == (2, 2)


def test_recording_ends_with_an_exception(block, y0):
    block.integrator = Dopri5(max_steps=1)
    with pytest.raises(SolveError), block.recording() as records:
        block(y0)
    block.integrator = Dopri5()
    block(y0)
    assert records == []


# ---- using


def test_using_another_integrator_in_a_context(block, y0):
    before = block(y0)
    with block.using(RK4(2)):
        assert torch.equal(block(y0), solve(block.f, y0, 0.5, 2.0, RK4(2)).y)
        assert block.options.batched
        with block.using(Euler(), batched=False):
            assert block.solve(y0).nfe.shape == ()
        assert block.integrator == RK4(2)
        assert block.options.batched
    assert block.integrator == Dopri5()
    assert torch.equal(block(y0), before)


def test_using_ends_with_an_exception(block, y0):
    failing = Dopri5(rtol=1e-9, atol=1e-9, max_steps=1)
    with pytest.raises(SolveError), block.using(failing, batched=False):
        block(y0)
    assert block.integrator == Dopri5()
    assert block.options.batched


@pytest.mark.parametrize("gradient", ["direct", "checkpoint", "backsolve", Backsolve(integrator=RK4(50))])
def test_gradient_modes_of_the_block(tanh_field, starts, gradient):
    f, y0 = tanh_field(3, scale=1.0), starts(4, 3)
    solve(f, y0, 0.0, 1.0, Dopri5(rtol=1e-9, atol=1e-9)).y.sum().backward()
    expected, f.W.grad = f.W.grad, None
    solution = NeuralODE(f, Dopri5(rtol=1e-9, atol=1e-9), gradient=gradient).solve(y0)
    solution.y.sum().backward()
    torch.testing.assert_close(f.W.grad, expected, rtol=1e-6, atol=1e-6)
    if gradient not in ("direct", "checkpoint"):
        with pytest.raises(RuntimeError, match="has no gradient"):
            solution.error.sum().backward()


def test_compile_compiles_the_steps(tanh_field, starts):
    f, y0, compiled = tanh_field(3), starts(4, 3), []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph

    block = NeuralODE(f, Dopri5(), compile={"backend": backend})
    with torch.no_grad():
        torch.testing.assert_close(block(y0), solve(f, y0, 0.0, 1.0, Dopri5()).y, rtol=1e-9, atol=1e-9)
        number = len(compiled)
        assert number > 0
        block.options = replace(block.options, compile=False)
        block(y0[:2])
    assert len(compiled) == number


def test_differentiate_step_sizes_record_progress_and_throw_are_passed_to_dise_solve(tanh_field, starts):
    f, y0 = tanh_field(3), starts(4, 3).requires_grad_()
    found = [
        torch.autograd.grad(NeuralODE(f, Dopri5(), differentiate_step_sizes=through).solve(y0).error.sum(), y0)[0]
        for through in (False, True)
    ]
    expected = torch.autograd.grad(solve(f, y0, 0.0, 1.0, Dopri5(), differentiate_step_sizes=True).error.sum(), y0)[0]
    torch.testing.assert_close(found[1], expected)
    assert not torch.allclose(found[0], expected)
    reports = []
    block = NeuralODE(f, Dopri5(max_steps=1))
    solution = block.solve(y0, record=True, progress=reports.append, throw=False)
    assert len(reports) == 1
    assert solution.steps.t.shape[0] == 4
    assert not (solution.status == 0).all()
    with pytest.raises(SolveError, match="MAX_STEPS"):
        block(y0)


# ---- weights of a model with and without a policy


def dynamic_and_plain():
    head = nn.Linear(2, 3)
    rule = Forecast(head, 0.5, classes=3)
    dynamic = nn.Sequential(NeuralODE(nn.Linear(2, 2), Cascade((Euler(), RK4()), [rule])), head)
    plain = nn.Sequential(NeuralODE(nn.Linear(2, 2), RK4()), nn.Linear(2, 3))
    return dynamic, plain, rule


def test_weights_without_a_policy_leave_the_policy_unchanged():
    dynamic, plain, rule = dynamic_and_plain()
    before = rule.weight.fill_(3.0).clone()
    dynamic.load_state_dict(plain.state_dict())
    assert torch.equal(rule.weight, before)
    assert torch.equal(dynamic[1].weight, plain[1].weight)
    assert torch.equal(dynamic[0].f.weight, plain[0].f.weight)


def test_weights_with_a_policy_load_into_a_model_without_one():
    dynamic, plain, _ = dynamic_and_plain()
    plain.load_state_dict(dynamic.state_dict())
    assert torch.equal(dynamic[0].f.weight, plain[0].f.weight)
    assert "0.policy.accept.0.weight" in dynamic.state_dict()  # loading does not change the state dict


def test_a_policys_saved_weights_are_loaded_and_must_be_complete():
    dynamic, _, rule = dynamic_and_plain()
    state = dynamic.state_dict() | {"0.policy.accept.0.bias": torch.tensor([1.0, 2.0, 3.0])}
    dynamic.load_state_dict(state)
    assert rule.bias.tolist() == [1.0, 2.0, 3.0]
    del state["0.policy.accept.0.bias"]
    with pytest.raises(RuntimeError, match=r"Missing key.*accept\.0\.bias"):
        dynamic.load_state_dict(state)


def test_what_is_no_function_or_no_integrator_is_refused_at_once(tanh_field):
    with pytest.raises(TypeError, match=r"f: expected a function of \(t, y\), got int"):
        NeuralODE(3, Dopri5())
    block = NeuralODE(tanh_field(3), Dopri5())
    for wrong in (None, "dopri5", Dopri5):
        with pytest.raises(TypeError, match="integrator: expected an integrator such as"):
            NeuralODE(tanh_field(3), wrong)
        with pytest.raises(TypeError, match="integrator: expected an integrator such as"):
            block.integrator = wrong
    with pytest.raises(TypeError, match=r"options: expected a dise\.SolveOptions, got"):
        block.options = {"compile": True}
    assert (block.integrator, block.options) == (Dopri5(), SolveOptions())


@pytest.mark.parametrize("name", ["batched", "drop_finished", "gradient", "differentiate_step_sizes", "compile"])
def test_an_option_set_on_the_block_itself_is_refused(tanh_field, name):
    block = NeuralODE(tanh_field(3), RK4())
    with pytest.raises(AttributeError, match=rf"{name}: .*replace\(block.options, {name}="):
        setattr(block, name, True)
