"""Private and prototype parts of torch: without any of them compiled solves still work."""

import sys
from contextlib import nullcontext
from pathlib import Path
from tempfile import gettempdir

import pytest
import torch
from torch.testing import assert_close

from dise import Bosh3, solve
from dise.integrate.compile import private
from dise.integrate.compile.backend import fast_inductor, inductor

BOSH = Bosh3(rtol=1e-4, atol=1e-4, first_step="span")


def decay(t, y):
    return -y * torch.cos(t)


def without(monkeypatch, *names):
    """As in a torch that lacks these attributes."""
    for name in names:
        monkeypatch.delattr(name)


def test_without_inductors_table_it_is_found_by_its_name(monkeypatch):
    assert private.code_generator() is not None
    without(monkeypatch, "torch._inductor.decomposition.select_decomp_table")
    assert private.code_generator() is None
    called = []
    monkeypatch.setattr(
        "torch._dynamo.backends.registry.lookup_backend", lambda name: lambda *call: called.append((name, *call))
    )
    for backend in (inductor, fast_inductor):
        backend("graph", [], options={"max_autotune": True})
    assert called == [("inductor", "graph", [])] * 2


def test_without_a_way_to_pass_the_table_inductor_is_found_by_its_name(monkeypatch):
    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", lambda graph, inputs: graph)
    assert private.code_generator() is None
    monkeypatch.setitem(sys.modules, "torch._dynamo.backends.registry", None)
    with pytest.raises(RuntimeError, match="inductor"):
        private.torchs_inductor()


def test_without_torchs_cache_and_formulas_there_are_others(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch._inductor.runtime.cache_dir_utils", None)
    monkeypatch.setitem(sys.modules, "torch._decomp", None)
    assert Path(private.cache_folder()).parent == Path(gettempdir())
    assert private.decomposition(torch.ops.aten.silu.default) is None


def test_without_a_way_to_see_operators_inductor_compiles(monkeypatch):
    passed = []
    generator = private.CodeGenerator(lambda graph, inputs, **keywords: passed.append(graph), dict)
    monkeypatch.setattr(private, "code_generator", lambda: generator)
    monkeypatch.setitem(sys.modules, "dise.integrate.compile.rowwise.graphs", None)
    inductor("graph", [])
    assert passed == ["graph"]


def test_options_and_settings_that_torch_lacks_are_left_out(monkeypatch):
    assert private.known_options({"cpp_wrapper": True, "no_such_option": 1}) == {"cpp_wrapper": True}
    with private.functorch_settings({"no_such_setting": 1, "cse": False}):
        assert not torch._functorch.config.cse
    for name in ("torch._inductor", "torch._functorch"):
        without(monkeypatch, f"{name}.config")
        monkeypatch.setitem(sys.modules, f"{name}.config", None)
    assert private.known_options({"cpp_wrapper": True}) == {}
    assert isinstance(private.functorch_settings({"cse": False}), nullcontext)


@pytest.fixture
def vectors_work(monkeypatch):
    """The function, which remembers nothing, where torch's kernels and the CPU have 512 bits."""
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr("torch.cpu._is_avx512_supported", lambda: True)
    monkeypatch.setattr("dise.integrate.compile.private.sys.platform", "linux")
    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", lambda: "true")
    return private.vectors_work.__wrapped__


def test_vectors_are_those_that_torch_and_the_compiler_have(vectors_work):
    assert vectors_work()


def test_inductor_tests_vectors_where_torch_does_not_use_the_widest(vectors_work, monkeypatch):
    for capability in ("AVX2", "DEFAULT"):
        monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: capability)  # noqa: B023
        assert not vectors_work()


def test_inductor_tests_vectors_where_the_compiler_refuses_or_is_missing(vectors_work, monkeypatch):
    for compiler in ("false", "no-such-compiler"):
        monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", lambda: compiler)  # noqa: B023
        assert not vectors_work()


@pytest.mark.parametrize("given", [True, False])
def test_what_the_environment_says_about_vectors_stays(vectors_work, given):
    with torch._inductor.config.patch({"cpp.vec_isa_ok": given}):
        assert not vectors_work()


@pytest.mark.parametrize("name", ["torch.cpu._is_avx512_supported", "torch._inductor.cpp_builder.get_cpp_compiler"])
def test_inductor_tests_vectors_where_torch_cannot_tell(vectors_work, monkeypatch, name):
    without(monkeypatch, name)
    assert not vectors_work()


def test_without_an_operator_for_strides_rows_are_copied(monkeypatch):
    x = torch.arange(6.0).reshape(3, 2).t()
    without(monkeypatch, "torch._inductor.inductor_prims.force_stride_order")
    assert private.with_contiguous_rows(x).is_contiguous()
    assert torch.equal(private.with_contiguous_rows(x), x)


def test_without_torchs_class_of_compiler_errors_it_is_their_base_class(monkeypatch):
    assert issubclass(private.compiler_error(), RuntimeError)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torch._dynamo.exc", None)
        assert private.compiler_error() is RuntimeError


@pytest.mark.parametrize("grad", [True, False])
def test_solves_without_hints_and_loops(starts, monkeypatch, grad):
    without(monkeypatch, "torch._dynamo.maybe_mark_dynamic")
    monkeypatch.setitem(sys.modules, "torch._higher_order_ops.while_loop", None)
    y0 = starts(9, 2)
    assert private.while_loop() is None
    with torch.set_grad_enabled(grad):
        eager, compiled = (solve(decay, y0, 0.0, 3.0, BOSH, compile=c) for c in (False, {"backend": "eager"}))
    assert_close(compiled.y, eager.y, rtol=1e-9, atol=1e-11)
    assert torch.equal(compiled.nfe, eager.nfe)


@pytest.mark.slow
@pytest.mark.parametrize("setting", [True, {"backend": "inductor"}, {"mode": "default"}], ids=str)
def test_torchs_own_backend_generates_code(starts, monkeypatch, setting):
    """Where it is all there is, and where it is named."""
    without(monkeypatch, "torch._inductor.decomposition.select_decomp_table")
    y0 = starts(9, 2)
    with torch.no_grad():
        eager, compiled = (solve(decay, y0, 0.0, 3.0, BOSH, compile=c) for c in (False, setting))
    assert_close(compiled.y, eager.y, rtol=1e-9, atol=1e-11)
    assert torch.equal(compiled.nfe, eager.nfe)
