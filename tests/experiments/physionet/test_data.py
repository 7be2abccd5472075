import gzip
import hashlib
import io
import logging
import os
import runpy
import sys
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pooch
import pytest
import torch

from dise_experiments.common.errors import DataError
from dise_experiments.physionet import data
from dise_experiments.physionet.data import load_physionet, load_physionet_sample
from dise_experiments.physionet.records import VARIABLES
from dise_experiments.physionet.text import parse_outcomes, parse_record

ROOT = Path(__file__).parents[3]
SET_A, SET_B, OUTCOMES_A, OUTCOMES_B = NAMES = ("set-a.tar.gz", "set-b.tar.gz", "Outcomes-a.txt", "Outcomes-b.txt")
PARTS = ("train", "held_out", "test", "set_b")
AGE, HEIGHT, WEIGHT, HR, TEMP, AST = (VARIABLES.index(v) for v in ("Age", "Height", "Weight", "HR", "Temp", "AST"))


# ---- fixtures: all of the data where it is there, and a stand-in of 20 + 5 records that has its own hashes


@pytest.fixture(scope="module")
def given():
    folder = Path(os.environ.get("DISE_DATA") or ROOT.parent / "shared" / "data")
    if not (folder / "physionet2012" / SET_A).exists():
        pytest.skip(f"needs all of PhysioNet 2012 in DISE_DATA; {folder}/physionet2012 is not there")
    return folder


@pytest.fixture(scope="module")
def full_cache(tmp_path_factory):
    """The cache folder in which `full` was kept; empty at first."""
    return partial(os.path.join, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def full(given, full_cache):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pooch, "os_cache", full_cache)
        return load_physionet(given)


@pytest.fixture(scope="module")
def sample():
    return load_physionet_sample()


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    """No data folder in the environment; the cache folder is tmp_path/cache."""
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / "cache" / project)
    monkeypatch.delenv("DISE_DATA", raising=False)


def text_of(record, *lines):
    """A record's file: the header, its id, the lines."""
    return "".join(f"{line}\n" for line in ("Time,Parameter,Value", f"00:00,RecordID,{record}", *lines))


def small_set(letter):
    """Texts by name: the record's number is its age; it has as many rows beside the first as its number modulo 3."""
    first, count = (500, 20) if letter == "a" else (900, 5)
    return {
        f"set-{letter}/{first + i}.txt": text_of(
            first + i, f"00:00,Age,{i}", *(f"{hour:02}:30,HR,{60 + hour}" for hour in range(i % 3))
        )
        for i in range(count)
    }


def outcomes_of(records, header="RecordID,SAPS-I,In-hospital_death"):
    """An outcomes file: of those with an even id, every fourth died."""
    ids = [int(Path(name).stem) for name in records]
    return "".join(f"{line}\n" for line in (header, *(f"{i},7,{int(i % 4 == 0)}" for i in ids)))


def packed(records, *, folder=None, extra=(), **options):
    """A .tar.gz archive of texts by name."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        if folder:
            entry = tarfile.TarInfo(folder)
            entry.type = tarfile.DIRTYPE
            archive.addfile(entry)
        for name, text in [*records.items(), *extra]:
            entry = tarfile.TarInfo(name)
            entry.size = len(text.encode("latin-1"))
            archive.addfile(entry, io.BytesIO(text.encode("latin-1")))
    return gzip.compress(tar.getvalue(), **options)


def sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()


def hash_of(records):
    """The hash of an archive as data.py describes it."""
    return sha256("".join(f"{Path(name).name}\0{records[name]}\0" for name in sorted(records)))


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A data folder with small sets, whose hashes stand for the real ones."""
    folder = tmp_path / "given"
    (folder / "physionet2012").mkdir(parents=True)
    hashes = {}
    for letter in "ab":
        records = small_set(letter)
        outcomes = outcomes_of(records)
        (folder / "physionet2012" / f"set-{letter}.tar.gz").write_bytes(packed(records, folder=f"set-{letter}"))
        (folder / "physionet2012" / f"Outcomes-{letter}.txt").write_text(outcomes)
        hashes |= {f"set-{letter}.tar.gz": hash_of(records), f"Outcomes-{letter}.txt": sha256(outcomes)}
    monkeypatch.setattr(data, "SHA256", hashes)
    return folder


load_small = partial(load_physionet, held_out=4)


def put(small, name, content):
    """Writes another file; the path."""
    path = small / "physionet2012" / name
    path.write_bytes(content)
    return path


def same(one, other):
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in one.__dataclass_fields__)


def all_same(one, other):
    return all(same(getattr(one, part), getattr(other, part)) for part in PARTS)


def ids(splits):
    return [getattr(splits, part).ids.tolist() for part in PARTS]


# ---- one record


def parsed(*lines, q=0.0, record=7):
    return parse_record(f"set-a/{record}.txt", text_of(record, *lines), q)


def test_a_record_is_read_as_written():
    series = parsed("00:00,Age,54", "00:07,HR,73", "00:07,Temp,35.1", "26:30,AST,1.843e+04")
    assert series.ids.tolist() == [7]
    assert series.counts.tolist() == [3]
    assert series.times.tolist() == pytest.approx([0, 7 / 60, 26.5])
    expected = np.zeros((3, 41), np.float32)
    expected[0, AGE], expected[1, HR], expected[1, TEMP], expected[2, AST] = 54, 73, 35.1, 18430
    assert np.array_equal(series.values, expected)
    assert np.array_equal(series.mask, expected > 0)
    types = [array.dtype for array in series]
    assert types == [np.int64, np.float32, np.float32, np.bool_, np.int64]


def test_a_measured_zero_is_measured():
    series = parsed("00:00,Gender,0")
    assert (series.mask.sum(), series.values.sum()) == (1, 0)


@pytest.mark.parametrize("value", ["-1", "-1.0", "-1e0"])
def test_minus_one_is_not_measured(value):
    series = parsed("00:00,Age,54", f"00:00,Height,{value}", f"01:00,Weight,{value}")
    assert series.times.tolist() == [0]  # a time at which nothing was measured makes no row
    assert np.flatnonzero(series.mask[0]).tolist() == [AGE]
    assert series.values[0].sum() == 54


def test_other_negative_values_are_values():
    series = parsed("00:00,Temp,-17.8", "01:00,Temp,-1.1")
    assert series.values[:, TEMP].tolist() == pytest.approx([-17.8, -1.1])


def test_repeats_are_averaged_over_what_was_measured():
    series = parsed("00:00,Weight,-1", "00:00,Weight,80", "01:00,HR,60", "01:00,HR,70", "01:00,HR,71", "01:00,Temp,37")
    assert series.times.tolist() == [0, 1]
    assert series.values[0, WEIGHT] == 80
    assert series.values[1, [HR, TEMP]].tolist() == [67, 37]


def test_the_first_row_exists_even_if_nothing_was_measured_then():
    series = parsed("05:00,HR,60")
    assert series.times.tolist() == [0, 5]
    assert series.mask.sum(1).tolist() == [0, 1]
    assert parsed().times.tolist() == [0]


def test_times_are_rounded_to_multiples_of_q():
    series = parsed("00:07,HR,60", "00:37,HR,70", "48:00,HR,80", q=0.016)
    # 7/60 h = 7.29 q, 37/60 h = 38.54 q, 48 h = 3000 q
    assert series.times.tolist() == pytest.approx([0, 7 * 0.016, 39 * 0.016, 48])


def test_values_whose_rounded_times_agree_share_a_row():
    series = parsed("00:20,HR,60", "00:31,HR,70", "01:20,HR,80", "01:20,Temp,37", q=1)
    assert series.times.tolist() == [0, 1]
    assert series.values[:, HR].tolist() == [60, 75]
    assert series.values[1, TEMP] == 37


def test_half_of_q_is_rounded_to_even_multiples_as_published():
    assert parsed("00:30,HR,60", "01:30,HR,60", "02:30,HR,60", q=1).times.tolist() == [0, 2]


def test_every_minute_has_a_row_of_its_own_at_the_published_q():
    minutes = [f"{m // 60:02}:{m % 60:02},HR,60" for m in range(2881)]
    for q in (0.0, 0.016):
        assert np.diff(parsed(*minutes, q=q).times).min() > 0.01
        assert parsed(*minutes, q=q).counts.tolist() == [2881]


@pytest.mark.parametrize("q", [-0.1, float("nan"), float("inf")])
def test_q_is_a_time(q, small):
    for call in (lambda: parsed(q=q), lambda: load_small(small, q=q), lambda: load_physionet_sample(q=q)):
        with pytest.raises(ValueError, match=f"q: expected 0 or more hours, got {q}"):
            call()


@pytest.mark.parametrize(
    ("line", "expected", "found"),
    [
        ("01:00,Pulse,60", "one of the 41 variables", "'Pulse'"),
        ("01:00,hr,60", "one of the 41 variables", "'hr'"),
        ("01:00,,60", "one of the 41 variables", "nothing"),
        ("01:00,RecordID,7", "one of the 41 variables", "'RecordID'"),
        ("01:00,HR,", "a number", "nothing"),
        ("01:00,HR,fast", "a number", "'fast'"),
        ("01:00,HR,nan", "a number", "'nan'"),
        ("01:00,HR,inf", "a number", "'inf'"),
        ("01:00,HR,6_0", "a number", "'6_0'"),
        ("01:00,HR, 60", "a number", "' 60'"),
        ("01:00,HR,1e39", "a number", "'1e39'"),
        ("01:00,HR,-1e999", "a number", "'-1e999'"),
        ("01:00,HR,٦٠", "a number", "'٦٠'"),
        ("1:00,HR,60", "a time HH:MM", "'1:00'"),
        ("-1:00,HR,60", "a time HH:MM", "'-1:00'"),
        ("01:60,HR,60", "a time HH:MM", "'01:60'"),
        ("01.5,HR,60", "a time HH:MM", "'01.5'"),
        (",HR,60", "a time HH:MM", "nothing"),
        ("01:00,HR", "HH:MM,Parameter,Value", "'01:00,HR'"),
        ("01:00,HR,60,70", "HH:MM,Parameter,Value", "'01:00,HR,60,70'"),
        ("", "HH:MM,Parameter,Value", "nothing"),
        ("00:29,HR,60", "a time not before 00:30", "'00:29'"),
    ],
)
def test_a_wrong_line_is_named(line, expected, found):
    with pytest.raises(DataError) as caught:
        parsed("00:00,Age,54", "00:30,HR,60", line, "02:00,HR,60")
    assert str(caught.value) == f"physionet: set-a/7.txt:5: expected {expected}, found {found}"


@pytest.mark.parametrize(
    ("text", "line", "expected", "found"),
    [
        ("", 1, "'Time,Parameter,Value'", "nothing"),
        ("00:00,RecordID,7\n", 1, "'Time,Parameter,Value'", "'00:00,RecordID,7'"),
        ("Time,Parameter,Value\n", 2, "'00:00,RecordID,7', the file's name", "nothing"),
        ("Time,Parameter,Value\n00:00,Age,54\n", 2, "'00:00,RecordID,7', the file's name", "'00:00,Age,54'"),
        (text_of(8), 2, "'00:00,RecordID,7', the file's name", "'00:00,RecordID,8'"),
        (text_of(7, "00:00,Age,54")[:-1], 3, "a line that ends with a newline", "'00:00,Age,54'"),
        (text_of(7, "00:00,Age,54")[:-8], 3, "a line that ends with a newline", "'00:00'"),
        ("Time,Par", 1, "a line that ends with a newline", "'Time,Par'"),
    ],
)
def test_a_wrong_beginning_or_end_is_named(text, line, expected, found):
    with pytest.raises(DataError) as caught:
        parse_record("7.txt", text, 0.0)
    assert str(caught.value) == f"physionet: 7.txt:{line}: expected {expected}, found {found}"


def test_a_long_wrong_line_is_not_quoted_whole():
    with pytest.raises(DataError) as caught:
        parsed("x" * 10_000)
    assert len(str(caught.value)) < 200


def test_a_name_must_be_a_record_id():
    with pytest.raises(DataError, match=r"notes\.txt:2: expected '00:00,RecordID,notes', the file's name"):
        parse_record("notes.txt", text_of("notes"), 0.0)


# ---- outcomes


def test_outcomes_are_found_by_the_names_of_columns():
    assert parse_outcomes("o.txt", "In-hospital_death,Survival,RecordID\n1,5,3\n0,-1,2\n") == {3: 1, 2: 0}
    assert parse_outcomes("o.txt", "RecordID,In-hospital_death\n") == {}


@pytest.mark.parametrize(
    ("text", "line", "expected", "found"),
    [
        ("", 1, "a header with RecordID and In-hospital_death", "nothing"),
        ("RecordID,Death\n", 1, "a header with RecordID and In-hospital_death", "'RecordID,Death'"),
        ("RecordID,In-hospital_death\n1,0\n2\n", 3, "2 cells", "'2'"),
        ("RecordID,In-hospital_death\n1,0,5\n", 2, "2 cells", "'1,0,5'"),
        ("RecordID,In-hospital_death\n1,0\n\n", 3, "2 cells", "nothing"),
        ("RecordID,In-hospital_death\n1,0\n1,0\n", 3, "a RecordID that occurs once", "'1'"),
        ("RecordID,In-hospital_death\nx,0\n", 2, "a RecordID that occurs once", "'x'"),
        ("RecordID,In-hospital_death\n1,-1\n", 2, "In-hospital_death 0 or 1", "'-1'"),
        ("RecordID,In-hospital_death\n1,\n", 2, "In-hospital_death 0 or 1", "nothing"),
        ("RecordID,In-hospital_death\n1,0\n2,1", 3, "a line that ends with a newline", "'2,1'"),
    ],
)
def test_a_wrong_line_of_outcomes_is_named(text, line, expected, found):
    with pytest.raises(DataError) as caught:
        parse_outcomes("Outcomes-a.txt", text)
    assert str(caught.value) == f"physionet: Outcomes-a.txt:{line}: expected {expected}, found {found}"


# ---- all of the data


@pytest.mark.long
def test_full_data_have_the_published_sizes_and_deaths(full):
    assert [len(getattr(full, part)) for part in PARTS] == [2560, 640, 800, 4000]
    deaths = [int(getattr(full, part).labels.sum()) for part in PARTS]
    assert deaths[0] + deaths[1] == 433
    assert deaths[2:] == [121, 568]
    assert sum(deaths[:3]) == 554


@pytest.mark.long
def test_full_data_keep_the_records_without_a_time_series(full):
    assert sum(getattr(full, part).without_series for part in PARTS[:3]) == 3
    assert full.set_b.without_series == 7
    bare = full.set_b[~full.set_b.has_series]
    assert bare.counts.tolist() == [1] * 7
    assert bare.times.tolist() == [0] * 7


@pytest.mark.long
def test_full_data_are_measured_within_two_days_at_distinct_minutes(full):
    for part in PARTS:
        records = getattr(full, part)
        assert (records.times[records.offsets] == 0).all()
        assert records.times.max() <= 48
        assert records.mask.any(1).all()
        assert not ((records.values == -1) & records.mask).any()
    # Minutes from 00:00 to 48:00: rounding to 0.016 h merges none.
    assert len(torch.cat([getattr(full, part).times for part in PARTS]).unique()) == 2881


@pytest.mark.long
def test_test_records_are_those_of_scikit_learn(full):
    # train_test_split(ids, train_size=0.8, random_state=42, shuffle=True) of the sorted ids, by scikit-learn 1.9.1
    assert full.test.ids[:3].tolist() == [133980, 141416, 133906]
    assert hashlib.md5(full.test.ids.numpy().tobytes()).hexdigest() == "8ed516fd4b44dd005b235418ed19050f"


@pytest.mark.long
def test_held_out_records_are_the_ones_they_have_always_been(full):
    # A recorded value: were the split to move, a selector would be judged on records its model was trained on.
    assert hashlib.md5(full.held_out.ids.numpy().tobytes()).hexdigest() == "931a6a05c4b799379e2fbdbd0fc33993"


@pytest.mark.long
def test_full_data_are_the_same_when_they_were_kept(full, given, full_cache, monkeypatch):
    monkeypatch.setattr(pooch, "os_cache", full_cache)
    monkeypatch.setattr(data, "parse_record", None)  # nothing is parsed
    assert all_same(load_physionet(given), full)


# ---- the sample


def test_sample_sizes_and_deaths(sample):
    assert [len(getattr(sample, part)) for part in PARTS] == [200, 50, 50, 20]
    assert [int(getattr(sample, part).labels.sum()) for part in PARTS] == [30, 12, 8, 4]  # SAMPLE.md
    assert data.SAMPLE_FILE.stat().st_size < 520_000


def test_sample_parts_share_no_record(sample):
    assert len({record for part in ids(sample) for record in part}) == 320


@pytest.mark.long
def test_sample_records_are_in_the_same_part_of_the_full_data(sample, full):
    for part in PARTS:
        whole, some = getattr(full, part), getattr(sample, part)
        place = {record: row for row, record in enumerate(whole.ids.tolist())}
        assert same(whole[torch.tensor([place[record] for record in some.ids.tolist()])], some)


def test_sample_has_rows_at_the_times_asked_for(sample):
    coarse = load_physionet_sample(q=1)
    assert (coarse.train.times == coarse.train.times.round()).all()
    assert coarse.train.times.max() <= 48
    assert len(coarse.train.times) < len(sample.train.times)
    assert ids(coarse) == ids(sample)


def make_sample():
    return runpy.run_path(str(ROOT / "tools" / "make_physionet_sample.py"))


def unpacked(content):
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        return {entry.name: archive.extractfile(entry).read() for entry in archive}


@pytest.mark.long
def test_sample_is_what_the_tool_makes(full, given):
    tool = make_sample()
    files = tool["collect"](tool["draw"](full), given)
    assert files == unpacked(data.SAMPLE_FILE.read_bytes())


def test_tool_writes_the_same_bytes_whenever_it_runs():
    pack = make_sample()["pack"]
    content = pack({"train/1.txt": b"one", "train/Outcomes.txt": b"two"})
    assert content[4:8] == bytes(4)  # gzip's time
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        assert {(entry.mtime, entry.uid, entry.uname) for entry in archive} == {(0, 0, "")}
    assert unpacked(content) == {"train/1.txt": b"one", "train/Outcomes.txt": b"two"}
    assert pack({"train/1.txt": b"one", "train/Outcomes.txt": b"two"}) == content


def test_tool_writes_what_the_loader_reads(small, tmp_path, monkeypatch):
    tool = make_sample()
    splits = load_small(small)
    drawn = {part: sorted(records)[:2] for part, records in zip(PARTS, ids(splits), strict=True)}
    (tmp_path / "part.tar.gz").write_bytes(tool["pack"](tool["collect"](drawn, small)))
    monkeypatch.setattr(data, "SAMPLE_FILE", tmp_path / "part.tar.gz")
    read = load_physionet_sample()
    assert ids(read) == list(drawn.values())
    whole = splits.test
    assert same(read.test, whole[whole.ids.argsort()[:2]])


def test_tool_ends_with_one_line_when_there_are_no_data(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["make_physionet_sample.py", "--data-dir", str(tmp_path)])
    with pytest.raises(SystemExit, match="no such file"):
        make_sample()["main"]()


# ---- splits


def test_small_files_are_read_exactly(small):
    splits = load_small(small)
    assert splits.set_b.ids.tolist() == [900, 901, 902, 903, 904]
    assert splits.set_b.labels.tolist() == [1, 0, 0, 0, 1]
    assert splits.set_b.counts.tolist() == [1, 2, 3, 1, 2]
    assert splits.set_b.times.tolist() == pytest.approx([0, 0, 0.496, 0, 0.496, 1.504, 0, 0, 0.496])  # 31 q, 94 q
    assert splits.set_b.values[splits.set_b.offsets, AGE].tolist() == [0, 1, 2, 3, 4]


def test_test_part_is_the_published_fifth_of_set_a_in_the_order_of_ids(small):
    order = np.random.RandomState(42).permutation(20)
    assert load_small(small).test.ids.tolist() == (500 + order[:4]).tolist()


def test_parts_of_set_a_partition_it(small):
    train, held_out, test, _ = ids(load_small(small))
    assert [len(train), len(held_out), len(test)] == [12, 4, 4]
    assert sorted(train + held_out + test) == list(range(500, 520))


def test_labels_and_rows_stay_with_their_records(small):
    splits = load_small(small)
    for part in PARTS[:3]:
        records = getattr(splits, part)
        assert (records.values[records.offsets, AGE] == records.ids - 500).all()
        assert (records.labels == (records.ids % 4 == 0)).all()
        assert (records.counts == 1 + (records.ids - 500) % 3).all()


def test_split_depends_on_its_seed_alone(small):
    first = load_small(small)
    torch.manual_seed(123)
    np.random.seed(123)
    assert all_same(load_small(small), first)
    other = load_small(small, seed=1)
    assert same(other.test, first.test)
    assert set(other.held_out.ids.tolist()) != set(first.held_out.ids.tolist())


def test_split_leaves_the_random_state_of_the_process_alone(small):
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    load_small(small)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


def test_a_smaller_held_out_part_is_within_a_larger_one(small):
    larger = load_physionet(small, held_out=6).held_out
    assert same(load_physionet(small, held_out=2).held_out, larger[:2])


def test_held_out_may_be_nothing(small):
    assert len(load_physionet(small, held_out=0).held_out) == 0


@pytest.mark.parametrize("held_out", [-1, 16, 17])
def test_held_out_must_leave_records_to_train_on(small, held_out):
    with pytest.raises(ValueError, match=rf"held_out: expected 0 to 15 .* got {held_out}"):
        load_physionet(small, held_out=held_out)


def test_loader_says_how_many_records_have_no_time_series(small, caplog):
    with caplog.at_level(logging.INFO, "dise_experiments"):
        splits = load_small(small)
    counts = [getattr(splits, part).without_series for part in PARTS]
    assert sum(counts[:3]) == 7  # 500, 503, …, 518
    assert counts[3] == 2
    each = "train {}, held out {}, test {}, set b {}".format(*counts)
    assert splits.note == f"PhysioNet: 9 of 25 records have no time series and are kept ({each})"
    assert splits.note in caplog.messages


# ---- files of a given folder


def test_environment_variable_names_the_folder(small, monkeypatch):
    monkeypatch.setenv("DISE_DATA", str(small))
    assert len(load_small().test) == 4


def test_argument_wins_over_environment_variable(small, monkeypatch):
    monkeypatch.setenv("DISE_DATA", "/nowhere")
    assert len(load_small(small).test) == 4


def test_home_folder_is_expanded(small, monkeypatch):
    monkeypatch.setenv("HOME", str(small.parent))
    monkeypatch.setenv("USERPROFILE", str(small.parent))
    assert len(load_small(Path("~/given")).test) == 4


def check_message(error, path, found):
    """One message: the path, what was expected, what was found, what to do."""
    message = str(error)
    expected = "a .tar.gz archive of records" if path.name.startswith("set") else "a file"
    assert f"PhysioNet: {path}: expected {expected} with SHA-256 {data.SHA256[path.name]}, found {found}" in message
    assert "--data-dir" in message
    assert "DISE_DATA" in message
    assert "holds physionet2012/*" in message
    assert "download" in message
    assert "\n" not in message


@pytest.mark.parametrize("name", NAMES)
def test_missing_file(small, name):
    path = small / "physionet2012" / name
    path.unlink()
    with pytest.raises(DataError) as caught:
        load_small(small)
    check_message(caught.value, path, "no such file")


def test_folder_in_the_place_of_a_file(small):
    path = small / "physionet2012" / SET_A
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError) as caught:
        load_small(small)
    check_message(caught.value, path, "a file that cannot be read (")


def test_truncated_archive(small):
    path = small / "physionet2012" / SET_B
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(DataError) as caught:
        load_small(small)
    check_message(caught.value, path, "a file that cannot be unpacked (")


@pytest.mark.parametrize(
    "content",
    [b"<html>Not found</html>", gzip.compress(b""), gzip.compress(b"no archive" * 100)],
    ids=["not gzip", "nothing", "not tar"],
)
def test_file_that_is_no_archive(small, content):
    path = put(small, SET_A, content)
    with pytest.raises(DataError) as caught:
        load_small(small)
    check_message(caught.value, path, "a file that cannot be unpacked (")


@pytest.mark.parametrize("content", [b"", packed({"set-a/README": "hello"})], ids=["empty", "archive"])
def test_archive_without_a_record(small, content):
    path = put(small, SET_A, content)
    with pytest.raises(DataError) as caught:
        load_small(small)
    found = "a file that cannot be unpacked (" if content == b"" else "damage (no record)"
    check_message(caught.value, path, found)


# tar's blocks are of 512 bytes: the folder, then a header and a text for each record.
@pytest.mark.parametrize(
    ("size", "found"),
    [(512 * 4 + 20, "a file that cannot be unpacked (unexpected"), (512 * 5 + 20, "2 records with SHA-256 ")],
    ids=["within a text", "within a header"],
)
def test_archive_that_was_cut_off_before_it_was_compressed(small, size, found):
    content = gzip.decompress((small / "physionet2012" / SET_A).read_bytes())
    path = put(small, SET_A, gzip.compress(content[:size]))
    with pytest.raises(DataError) as caught:
        load_small(small)
    check_message(caught.value, path, found)


def test_damaged_record_names_its_file_and_line(small):
    texts = small_set("a")
    path = put(small, SET_A, packed(texts | {"set-a/505.txt": texts["set-a/505.txt"].replace("60", "6?")}))
    with pytest.raises(DataError) as caught:
        load_small(small)
    check_message(caught.value, path, "damage (physionet: set-a/505.txt:4: expected a number, found '6?')")


def test_bytes_that_are_no_text_are_damage_where_they_stand(small):
    texts = small_set("a")
    path = put(small, SET_A, packed(texts | {"set-a/505.txt": texts["set-a/505.txt"].replace("HR", "\xff")}))
    with pytest.raises(DataError) as caught:
        load_small(small)
    check_message(
        caught.value, path, "damage (physionet: set-a/505.txt:4: expected one of the 41 variables, found '�')"
    )


def test_other_values_are_not_the_published_ones(small):
    texts = small_set("a") | {"set-a/505.txt": text_of(505, "00:00,Age,99")}
    path = put(small, SET_A, packed(texts))
    with pytest.raises(DataError) as caught:
        load_small(small)
    check_message(caught.value, path, f"20 records with SHA-256 {hash_of(texts)}")


def test_missing_and_further_records_are_not_the_published_ones(small):
    texts = small_set("b")
    fewer = dict(list(texts.items())[1:])
    path = put(small, SET_B, packed(fewer))
    with pytest.raises(DataError) as caught:
        load_small(small)
    check_message(caught.value, path, f"4 records with SHA-256 {hash_of(fewer)}")
    put(small, SET_B, packed(texts | {"set-b/905.txt": text_of(905)}))
    with pytest.raises(DataError, match="found 6 records with SHA-256"):
        load_small(small)


def test_damaged_outcomes_name_the_line(small):
    path = small / "physionet2012" / OUTCOMES_A
    path.write_text(path.read_text().replace("504,7,1", "504,7,2"))
    with pytest.raises(DataError) as caught:
        load_small(small)
    found = "damage (physionet: Outcomes-a.txt:6: expected In-hospital_death 0 or 1, found '2')"
    check_message(caught.value, path, found)


def test_other_outcomes_are_not_the_published_ones(small):
    path = small / "physionet2012" / OUTCOMES_A
    content = path.read_text().replace("504,7,1", "504,7,0")
    path.write_text(content)
    with pytest.raises(DataError) as caught:
        load_small(small)
    check_message(caught.value, path, f"20 outcomes with SHA-256 {sha256(content)}")


@pytest.mark.parametrize(
    ("ids", "found"),
    [
        ([900, 901, 902, 903], "no outcome for record 904"),
        ([902], "no outcome for record 900 and 3 more unmatched"),
        ([900, 901, 902, 903, 904, 905], "an outcome but no record 905"),
    ],
)
def test_records_and_outcomes_must_be_of_the_same_stays(small, monkeypatch, ids, found):
    content = outcomes_of([f"{i}.txt" for i in ids])
    put(small, OUTCOMES_B, content.encode())
    monkeypatch.setitem(data.SHA256, OUTCOMES_B, sha256(content))
    with pytest.raises(DataError, match=f"set-b.tar.gz and Outcomes-b.txt: expected an outcome for every .* {found}$"):
        load_small(small)


def test_repacked_archive_is_accepted(small):
    before = load_small(small)
    texts = small_set("a")
    names = sorted(texts, reverse=True)
    moved = {f"./{Path(name).name}": texts[name].replace("\n", "\r\n") for name in names}
    beside = [("./._500.txt", "\0\5"), ("./README.txt", "hello")]
    put(small, SET_A, packed(moved, extra=beside, compresslevel=1))
    assert all_same(load_small(small), before)


def test_given_folder_is_never_written_to(small):
    load_small(small)
    (small / "physionet2012" / OUTCOMES_B).unlink()
    before = {path: path.stat().st_mtime_ns for path in small.rglob("*")}
    with pytest.raises(DataError):
        load_small(small, download=True)
    assert {path: path.stat().st_mtime_ns for path in small.rglob("*")} == before


# ---- what is kept of a parsed set


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache" / "dise" / "physionet2012"


@pytest.fixture
def parses(monkeypatch):
    """The names of the records that were parsed."""
    names, parse = [], data.parse_record

    def counting(name, text, q):
        names.append(name)
        return parse(name, text, q)

    monkeypatch.setattr(data, "parse_record", counting)
    return names


def test_a_set_is_parsed_once(small, parses, cache):
    first = load_small(small)
    assert len(parses) == 25
    assert [path.suffix for path in cache.iterdir()] == [".kept", ".kept"]
    assert all_same(load_small(small), first)
    assert len(parses) == 25


def test_kept_sets_are_of_one_q(small, parses):
    fine, coarse = load_small(small), load_small(small, q=1)
    assert len(parses) == 50
    assert coarse.set_b.times.tolist() == [0, 0, 0, 2, 0, 0]  # 0:30 and 1:30, rounded to even
    assert all_same(load_small(small, q=1.0), coarse)
    assert all_same(load_small(small), fine)
    assert len(parses) == 50


def test_kept_sets_are_of_one_format(small, parses, monkeypatch):
    load_small(small)
    monkeypatch.setattr(data, "_FORMAT", data._FORMAT + 1)
    load_small(small)
    assert len(parses) == 50


def test_kept_sets_are_of_one_archive(small, parses, monkeypatch):
    load_small(small)
    texts = small_set("b") | {"set-b/900.txt": text_of(900, "00:00,Age,90")}
    put(small, SET_B, packed(texts))
    monkeypatch.setitem(data.SHA256, SET_B, hash_of(texts))
    assert load_small(small).set_b.values[0, AGE] == 90
    assert len(parses) == 30


def test_other_outcomes_are_read_beside_a_kept_set(small, parses, monkeypatch):
    load_small(small)
    content = (small / "physionet2012" / OUTCOMES_B).read_text().replace("904,7,1", "904,7,0")
    put(small, OUTCOMES_B, content.encode())
    monkeypatch.setitem(data.SHA256, OUTCOMES_B, sha256(content))
    assert load_small(small).set_b.labels.tolist() == [1, 0, 0, 0, 0]
    assert len(parses) == 25


def damage(path, kind):
    content = bytearray(path.read_bytes())
    if kind == "value":
        place = content.index(np.float32(60).tobytes())  # an HR
        content[place : place + 4] = np.float32(61).tobytes()
    path.write_bytes({"empty": b"", "cut off": content[:-100], "other": b"other" * 100}.get(kind, content))


@pytest.mark.parametrize("kind", ["empty", "cut off", "other", "value"])
def test_a_damaged_kept_set_is_parsed_again_and_replaced(small, parses, cache, kind):
    first = load_small(small)
    path = next(cache.glob("set-b*"))
    intact = path.read_bytes()
    damage(path, kind)
    assert path.read_bytes() != intact
    assert all_same(load_small(small), first)
    assert len(parses) == 30
    assert all_same(load_small(small), first)
    assert len(parses) == 30


def test_nothing_is_kept_of_a_damaged_archive(small, cache):
    put(small, SET_A, packed(small_set("a") | {"set-a/500.txt": text_of(500, "00:00,Age,99")}))
    with pytest.raises(DataError):
        load_small(small)
    assert list(cache.glob("set-a*")) == []


def test_nothing_but_whole_files_is_left_in_the_cache(small, cache):
    load_small(small)
    assert sorted(path.name[:6] for path in cache.iterdir()) == ["set-a-", "set-b-"]


def test_a_cache_folder_that_cannot_be_written_to_is_no_error(small, parses, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert len(load_small(small).test) == 4
    assert len(load_small(small).test) == 4
    assert len(parses) == 50


# ---- download, from a server on the loopback interface


class Handler(SimpleHTTPRequestHandler):
    def do_GET(self):
        self.server.requested.append(self.path)
        super().do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture
def server(small, monkeypatch):
    """A mirror of the small data."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=small / "physionet2012")) as server:
        server.requested = []
        server.url = f"http://127.0.0.1:{server.server_port}/"
        monkeypatch.setattr(data, "MIRRORS", (server.url,))
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def test_the_only_host_is_the_publisher():
    assert data.MIRRORS == ("https://physionet.org/files/challenge-2012/1.0.0/",)


def test_download_fills_the_cache_once(server, small, cache):
    downloaded = load_small()
    assert all_same(downloaded, load_small(small))
    assert sorted(path.name for path in cache.iterdir() if path.suffix != ".kept") == sorted(NAMES)
    assert sorted(server.requested) == sorted(f"/{name}" for name in NAMES)
    assert all_same(load_small(), downloaded)
    assert len(server.requested) == 4


def test_downloaded_sets_are_parsed_once(server, parses):
    load_small()
    load_small()
    assert len(parses) == 25


@pytest.mark.parametrize("name", NAMES)
def test_download_repairs_a_damaged_cache(server, cache, name):
    first = load_small()
    (cache / name).write_bytes(b"damaged")
    assert all_same(load_small(), first)
    assert server.requested[4:] == [f"/{name}"]


def test_failed_download_names_the_mirror_and_the_cause(server, small, cache):
    (small / "physionet2012" / SET_A).unlink()
    with pytest.raises(DataError) as caught:
        load_small()
    check_message(caught.value, cache / SET_A, f"no mirror to download it from ({server.url}: 404")
    assert isinstance(caught.value.__cause__, OSError)


def test_unreachable_mirror(server, cache):
    server.shutdown()
    server.server_close()
    with pytest.raises(DataError) as caught:
        load_small()
    check_message(caught.value, cache / SET_A, f"no mirror to download it from ({server.url}: ")


def test_download_of_other_content_leaves_nothing_in_the_cache(server, small, cache):
    put(small, SET_A, packed(small_set("a") | {"set-a/500.txt": text_of(500)}))
    with pytest.raises(DataError) as caught:
        load_small()
    found = f"no mirror to download it from ({server.url}: 20 records with SHA-256 "
    check_message(caught.value, cache / SET_A, found)
    assert list(cache.iterdir()) == []


def test_cache_is_enough_when_no_download_is_allowed(server):
    with pytest.raises(DataError, match=r"found no such file\. Allow the download, or point --data-dir"):
        load_small(download=False)
    assert server.requested == []
    load_small()
    assert len(load_small(download=False).test) == 4
