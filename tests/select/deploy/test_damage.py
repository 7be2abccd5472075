"""Damaged policies are refused with one kind of error, and leave the model as it was."""

import json

import pytest
import torch
from hypothesis import event, given
from hypothesis import strategies as st

from dise import RK4, CostSelector, Dynamic, Euler, PooledNetwork, load_policy, save_policy
from dise.select.deploy.unit import checksum

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


def write(folder, content):
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
        if content[name] is not None:
            (folder / name).write_bytes(content[name])


def flip(content, where, bit):
    damaged = bytearray(content)
    if damaged:
        damaged[int(where * len(damaged))] ^= 1 << bit
    return bytes(damaged)


def cut(content, where, end):
    return content[: int(where * len(content))] if end else content[int(where * len(content)) :]


def insert(content, where, more):
    at = int(where * len(content))
    return content[:at] + more + content[at:]


def swap(content, where, other):
    """Two halves of the content and another place exchanged."""
    i, j = sorted((int(where * len(content)), int(other * len(content))))
    return content[j:] + content[i:j] + content[:i]


places = st.floats(0, 1, exclude_max=True)
damages = st.one_of(
    st.tuples(st.just(flip), places, st.integers(0, 7)),
    st.tuples(st.just(flip), places, st.integers(0, 7)),
    st.tuples(st.just(cut), places, st.booleans()),
    st.tuples(st.just(insert), places, st.binary(min_size=1, max_size=8)),
    st.tuples(st.just(swap), places, places),
)


@pytest.mark.fuzz
@given(name=st.sampled_from(FILES), several=st.lists(damages, min_size=1, max_size=3))
def test_damaged_files(classifier, points, saved, name, several):
    """They are refused, or hold the very policy: a space became another, or e-05 became E-05."""
    folder, content = saved
    damaged = content[name]
    for damage, *arguments in several:
        damaged = damage(damaged, *arguments)
    write(folder, content | {name: damaged})
    model = classifier()
    accepted = refusal(model, folder) is None
    event("accepted" if accepted else f"{name} refused")
    if accepted:
        expected, x = classifier(), torch.cat(points(50))
        expected[1].integrator = dynamic(0)
        assert torch.equal(model(x), expected.eval()(x))


scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5))
anything = st.recursive(
    scalars,
    lambda parts: st.one_of(st.lists(parts, max_size=3), st.dictionaries(st.text(max_size=5), parts, max_size=3)),
    max_leaves=6,
)


def places_in(value, path=()):
    """The paths of all parts of a JSON value."""
    yield path
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in parts:
        yield from places_in(part, (*path, name))


@pytest.mark.fuzz
@given(data=st.data(), new=anything, drop=st.booleans())
def test_foreign_content_with_a_right_checksum(classifier, saved, data, new, drop):
    """Any part of the JSON may be another value, or missing: refused with a ValueError, or a policy of that content."""
    folder, content = saved
    policy = json.loads(content["policy.json"])
    del policy["checksum"]
    *path, last = data.draw(st.sampled_from([place for place in places_in(policy) if place]))
    parent = policy
    for name in path:
        parent = parent[name]
    if drop:
        del parent[last]
    else:
        parent[last] = new
    policy["checksum"] = checksum(policy)
    write(folder, content | {"policy.json": json.dumps(policy).encode()})
    model = classifier()
    before = model[1].integrator, model[1].report, model.training, list(model.modules())
    try:
        load_policy(model, folder)
        event("accepted")
    except ValueError:
        event("refused")
        assert (model[1].integrator, model[1].report, model.training, list(model.modules())) == before


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
