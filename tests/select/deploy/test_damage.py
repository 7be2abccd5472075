"""Damaged policies are refused with one kind of error, and leave the model as it was."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dise import RK4, CostSelector, Dynamic, Euler, PooledNetwork, load_policy, save_policy

FILES = ("policy.json", "policy.safetensors")


def dynamic(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Dynamic((Euler(1), RK4(1)), CostSelector(PooledNetwork(2, 2), candidates=2).eval())


@pytest.fixture
def saved(classifier, tmp_path):
    """A saved policy: its folder, and the bytes of its two files."""
    model = classifier().eval()
    model[1].integrator = dynamic(0)
    save_policy(model, tmp_path)
    return tmp_path, {name: (tmp_path / name).read_bytes() for name in FILES}


def refusal(model, folder):
    """The error with which the policy is refused, None if it is not; the model must be as it was then."""
    block, modules = model[1], list(model.modules())
    before = block.integrator, block.report, block.training
    try:
        load_policy(model, folder)
    except ValueError as raised:
        error = raised
    else:
        return None
    assert str(error).startswith(f"folder: {folder} ")
    assert (block.integrator, block.report, block.training) == before
    assert list(model.modules()) == modules
    return error


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(FILES), where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit(classifier, points, saved, name, where, bit):
    folder, content = saved
    for other in FILES:
        (folder / other).write_bytes(content[other])
    damaged = bytearray(content[name])
    damaged[int(where * len(damaged))] ^= 1 << bit
    (folder / name).write_bytes(damaged)
    model = classifier()
    if refusal(model, folder) is None:  # a space that became another, or e-05 that became E-05
        assert name == "policy.json"
        expected = classifier()
        expected[1].integrator = dynamic(0)
        x = torch.cat(points(50))
        assert torch.equal(model(x), expected.eval()(x))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kept", [None, 0, 0.5, -10], ids=str)
def test_a_file_that_is_missing_or_cut(classifier, saved, name, kept):
    folder, content = saved
    if kept is None:
        (folder / name).unlink()
    else:
        whole = content[name]
        (folder / name).write_bytes(whole[: int(kept * len(whole)) if abs(kept) < 1 else kept])
    assert refusal(classifier(), folder)


def test_the_files_of_two_policies(classifier, saved, tmp_path):
    """What a save leaves that is stopped between its two files."""
    folder, content = saved
    model = classifier()
    model[1].integrator = dynamic(1)
    save_policy(model, folder)
    (folder / "policy.json").write_bytes(content["policy.json"])
    with pytest.raises(
        ValueError, match=r"policy.safetensors is damaged or of another policy: its checksum is another"
    ):
        load_policy(classifier(), folder)
    assert refusal(classifier(), folder)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"null", b"7", b'"policy"', b"[" * 100_000, b"{}"], ids=range(6))
def test_foreign_files(classifier, saved, content):
    folder, _ = saved
    (folder / "policy.json").write_bytes(content)
    assert refusal(classifier(), folder)
