"""PhysioNet/Computing in Cardiology Challenge 2012: two days of each of 8,000 stays in intensive care, and who died.

Source: I. Silva, G. Moody, D. J. Scott, L. A. Celi, R. G. Mark, "Predicting in-hospital mortality of ICU patients: The
PhysioNet/Computing in Cardiology Challenge 2012", Computing in Cardiology 39, 2012; A. L. Goldberger et al.,
"PhysioBank, PhysioToolkit, and PhysioNet", Circulation 101(23), 2000 (ODC-BY 1.0).

What the records hold that one might not expect, all of it in sets a and b:

- A stay's first five values describe the patient and stand at 00:00; -1 means unknown there (Height 3,824 times,
  Weight 673, Gender 8). No other value is -1, and a living patient's cannot be: -1 is read as "not measured" wherever
  it stands. The published latent-ODE code reads it as a value.
- Other impossible values are left as they are, such as 36 temperatures of -17.8 °C, which is 0 °F.
- Values may be in scientific notation (AST 1.422e+04). No name and no value is empty: here that is an error.
- 3 records of set a and 7 of set b hold nothing but that description. They are kept, one row at 0 h, as deaths and
  survivors like others: `Records.without_series` counts them.
"""

import hashlib
import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from dise_experiments.common.errors import DataError
from dise_experiments.common.files import Source, read_bytes, recall, remember, unpack_tar
from dise_experiments.physionet.records import VARIABLES, Records

MIRRORS = ("https://physionet.org/files/challenge-2012/1.0.0/",)

# SHA-256 of the content: of an archive, of its records as `content_hash` puts them together, since archives get
# repacked.
SHA256 = {
    "set-a.tar.gz": "fae6afa9d7ed7f1d5572e21daed0e1406b9930469386a26d50772ae26e3b7c32",
    "set-b.tar.gz": "5c98b9982e6abedc6c862fbe25deb75a601c7689fb892f3bc193a82cbe343f3f",
    "Outcomes-a.txt": "2613ea60ccda29f87571a7d6b09ad130858a8ccd66325bd073365925026883c2",
    "Outcomes-b.txt": "1305f29734da374a809483229a99f33a9230aa8d4fa74b1a2d6ad788136423d5",
}

SAMPLE_FILE = Path(__file__).with_name("sample.tar.gz")
OUTCOMES = "Outcomes.txt"  # of each part of the sample

_FOLDER = "physionet2012"
_FORMAT = 1  # of what is kept of a parsed set; another number has every set parsed again
_MISSING = -1
_HEADER = "Time,Parameter,Value"
_LINE = re.compile(r"(\d\d):([0-5]\d),([^,]*),([+-]?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)", re.ASCII)
_TIME = re.compile(r"\d\d:[0-5]\d", re.ASCII)
_INDEX = {name: index for index, name in enumerate(VARIABLES)}
_ID, _LABEL = "RecordID", "In-hospital_death"

T = TypeVar("T")
_log = logging.getLogger(__name__)


class Series(NamedTuple):
    """What was measured in N stays: `dise_experiments.physionet.records.Records` without the outcome, in NumPy."""

    ids: NDArray[np.int64]
    times: NDArray[np.float32]
    values: NDArray[np.float32]
    mask: NDArray[np.bool_]
    counts: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class PhysionetSplits:
    """Disjoint parts: `train` fits the model, `held_out` the selector, `test` judges both, as does `set_b` once more.

    The first three are set a, of which published results are; set b's 4,000 stays are nobody's training data.
    """

    train: Records
    held_out: Records
    test: Records
    set_b: Records

    @property
    def note(self) -> str:
        """How many records have no time series, in one line."""
        parts = {"train": self.train, "held out": self.held_out, "test": self.test, "set b": self.set_b}
        counts = {name: part.without_series for name, part in parts.items()}
        each = ", ".join(f"{name} {count}" for name, count in counts.items())
        total = sum(map(len, parts.values()))
        return f"PhysioNet: {sum(counts.values())} of {total:,} records have no time series and are kept ({each})"


def load_physionet(
    data_dir: Path | None = None, *, q: float = 0.016, held_out: int = 640, seed: int = 0, download: bool = True
) -> PhysionetSplits:
    """All of sets a and b: 3,200 - `held_out` stays to train on, `held_out` set apart, 800 and 4,000 to test on.

    Reads `data_dir`/physionet2012/{set-a.tar.gz, set-b.tar.gz, Outcomes-a.txt, Outcomes-b.txt}, else those of
    $DISE_DATA; neither is ever written to. With neither, reads the user's cache folder, and downloads what is missing
    or damaged there from physionet.org if `download` is set. What it parsed is kept in the cache folder, so that only
    the first time is slow.

    `test` is the published one: the head of a permutation of set a in the order of RecordIDs, scikit-learn's
    `train_test_split(..., train_size=0.8, random_state=42)`. `held_out` counts the other stays that are set apart and
    `seed` draws them. It is not the seed of a run: runs with different seeds train and select on the same stays. The
    draw is the head of one permutation, so a smaller `held_out` is a part of a larger one, and the head of each part
    of set a is a random part. Set b is in the order of RecordIDs.

    Times are rounded to multiples of `q` hours, see `parse_record`. Logs `PhysionetSplits.note`.

    Errors: `DataError` for a file that is missing, damaged or cannot be downloaded; `ValueError` if `q` is negative or
    not finite, or if `held_out` is negative or leaves no stay to train on.
    """
    _check_quantization(q)
    set_a, set_b = (_load_set(letter, data_dir, q=q, download=download) for letter in "ab")
    rest, test = _published_split(set_a)
    train, held = _set_apart(rest, held_out=held_out, seed=seed)
    splits = PhysionetSplits(train, held, test, set_b)
    _log.info(splits.note)
    return splits


def load_physionet_sample(*, q: float = 0.016) -> PhysionetSplits:
    """The real records shipped with the package, for tests and demos: 200 train, 50 held out, 50 test, 20 of set b.

    Each is a random part of the same split of `load_physionet()`, in the order of RecordIDs; SAMPLE.md says how they
    were drawn.

    Errors: `ValueError` if `q` is negative or not finite.
    """
    _check_quantization(q)
    files = unpack_tar(read_bytes(SAMPLE_FILE))
    return PhysionetSplits(*(_sample_part(files, part, q) for part in ("train", "held_out", "test", "set_b")))


def parse_record(name: str, text: str, q: float) -> Series:
    """The series of one stay, from the text of its RecordID.txt.

    A time HH:MM is t = HH + MM/60 hours, rounded to round(t/q)·q; q = 0 leaves it as it is. Values whose rounded times
    agree make up one row, in which those of the same variable are averaged. -1 is a value that was not measured. The
    first row is at 0 h and exists even if nothing was measured then.

    Errors: `DataError` "physionet: FILE:LINE: expected …, found …" where the text is not as published: the header, the
    RecordID of the file's name at 00:00, then lines HH:MM,Parameter,Value that go forward in time, each ended;
    `ValueError` if `q` is negative or not finite.
    """
    _check_quantization(q)
    lines = _lines(name, text)
    body = lines[2:]
    hours, variables, values = _entries(name, body)
    back = np.flatnonzero(np.diff(hours) < 0)
    if len(back):
        line = int(back[0]) + 1
        raise _fault(name, line + 3, f"a time not before {body[line - 1][:5]}", body[line][:5])
    times = np.rint(hours / q) * q if q else hours
    return _rows(_number(name), times, variables, values)


def parse_outcomes(name: str, text: str) -> dict[int, int]:
    """In-hospital deaths, 0 or 1, by RecordID, from the text of an outcomes file: a header, then a line a record.

    Errors: `DataError` "physionet: FILE:LINE: expected …, found …" for a header without RecordID or In-hospital_death,
    for a line with another number of cells than the header, that is cut off, whose RecordID is not a number or has
    come before, or whose In-hospital_death is neither 0 nor 1.
    """
    lines = _ended_lines(name, text)
    header = lines[0].split(",") if lines else []
    if _ID not in header or _LABEL not in header:
        raise _fault(name, 1, f"a header with {_ID} and {_LABEL}", ",".join(header))
    outcomes: dict[int, int] = {}
    for number, line in enumerate(lines[1:], start=2):
        cells = line.split(",")
        if len(cells) != len(header):
            raise _fault(name, number, f"{len(header)} cells", line)
        record, label = cells[header.index(_ID)], cells[header.index(_LABEL)]
        if not _is_id(record) or int(record) in outcomes:
            raise _fault(name, number, "a RecordID that has not come before", record)
        if label not in ("0", "1"):
            raise _fault(name, number, f"{_LABEL} 0 or 1", label)
        outcomes[int(record)] = int(label)
    return outcomes


def records_of(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Those of an archive's files that are named RecordID.txt, in the order of RecordIDs, with Unix line ends."""
    named = {name: content for name, content in files.items() if _is_record(name)}
    return {name: named[name].replace(b"\r\n", b"\n") for name in sorted(named, key=_number)}


def content_hash(records: Mapping[str, bytes]) -> str:
    """SHA-256 over the names (without folders) and contents of records, in the order of RecordIDs."""
    digest = hashlib.sha256()
    for name in sorted(records, key=_number):
        digest.update(PurePosixPath(name).name.encode() + b"\0" + records[name] + b"\0")
    return digest.hexdigest()


def file_path(name: str, data_dir: Path | None) -> Path:
    """Where `load_physionet` looks for one of the files that `SHA256` names."""
    return _outcomes().path(name, data_dir)


# ---- sets and how they are split


def _load_set(letter: str, data_dir: Path | None, *, q: float, download: bool) -> Records:
    series = _archives(q).load(f"set-{letter}.tar.gz", data_dir, download=download)
    outcomes = _outcomes().load(f"Outcomes-{letter}.txt", data_dir, download=download)
    return _labelled(series, outcomes, f"set-{letter}.tar.gz and Outcomes-{letter}.txt")


def _sample_part(files: Mapping[str, bytes], part: str, q: float) -> Records:
    records = records_of({name: content for name, content in files.items() if name.startswith(f"{part}/")})
    name = f"{part}/{OUTCOMES}"
    return _labelled(_parse_all(records, q), parse_outcomes(name, files[name].decode()), f"{SAMPLE_FILE}, {part}")


def _labelled(series: Series, outcomes: Mapping[int, int], where: str) -> Records:
    ids = series.ids.tolist()
    unlike = sorted(set(ids) ^ outcomes.keys())
    if unlike:
        lacks = "no outcome for record" if unlike[0] in ids else "an outcome but no record"
        more = f" and {len(unlike) - 1} more unlike" if len(unlike) > 1 else ""
        raise DataError(
            f"physionet: {where}: expected an outcome for every record and no other, found {lacks} {unlike[0]}{more}"
        )
    labels = torch.tensor([outcomes[record] for record in ids], dtype=torch.int64)
    ids, times, values, mask, counts = map(torch.from_numpy, series)
    return Records(ids, times, values, mask, counts, labels)


def _published_split(records: Records) -> tuple[Records, Records]:
    """Four fifths to train on and a fifth to test on."""
    order = torch.from_numpy(np.random.RandomState(42).permutation(len(records))).long()
    test = len(records) - len(records) * 4 // 5
    return records[order[test:]], records[order[:test]]


def _set_apart(records: Records, *, held_out: int, seed: int) -> tuple[Records, Records]:
    if not 0 <= held_out < len(records):
        raise ValueError(f"held_out: expected 0 to {len(records) - 1} training records, got {held_out}")
    # RandomState because its stream is frozen (NEP 19): a new library version must not move the split.
    order = torch.from_numpy(np.random.RandomState(seed).permutation(len(records))).long()
    return records[order[held_out:]], records[order[:held_out]]


# ---- files


def _archives(q: float) -> Source[Series]:
    return Source("PhysioNet", _FOLDER, "*", MIRRORS, _expected_archive, partial(_read_archive, q=q))


def _outcomes() -> Source[dict[int, int]]:
    return Source("PhysioNet", _FOLDER, "*", MIRRORS, _expected_outcomes, _read_outcomes)


def _expected_archive(name: str) -> str:
    return f"a .tar.gz archive of records with SHA-256 {SHA256[name]}"


def _expected_outcomes(name: str) -> str:
    return f"a file with SHA-256 {SHA256[name]}"


def _read_archive(path: Path, *, q: float) -> Series:
    """A set's series, checked; the `DataError` says only what was found instead."""
    packed = read_bytes(path)
    key = f"{hashlib.sha256(packed).hexdigest()} {float(q)!r} {_FORMAT}"
    kept = f"{path.name.removesuffix('.tar.gz')}-{hashlib.sha256(key.encode()).hexdigest()[:32]}.kept"
    arrays = recall(_FOLDER, kept)
    if arrays is not None:
        return _restored(arrays)
    records = records_of(unpack_tar(packed))
    series = _located(lambda: _parse_all(records, q))
    digest = content_hash(records)
    if digest != SHA256[path.name]:
        raise DataError(f"{len(records):,} records with SHA-256 {digest}")
    remember(_FOLDER, kept, _condensed(series))
    return series


def _read_outcomes(path: Path) -> dict[int, int]:
    """A set's outcomes, checked; the `DataError` says only what was found instead."""
    content = read_bytes(path).replace(b"\r\n", b"\n")
    outcomes = _located(lambda: parse_outcomes(path.name, content.decode(errors="replace")))
    digest = hashlib.sha256(content).hexdigest()
    if digest != SHA256[path.name]:
        raise DataError(f"{len(outcomes):,} outcomes with SHA-256 {digest}")
    return outcomes


def _located(parse: Callable[[], T]) -> T:
    """What is parsed; before a hash is compared, since the parser can say where the damage is."""
    try:
        return parse()
    except DataError as error:
        raise DataError(f"damage ({error})") from error


def _condensed(series: Series) -> dict[str, NDArray[Any]]:
    """Without what was not measured, which is six sevenths."""
    measured, bits = series.values[series.mask], np.packbits(series.mask)
    return {"ids": series.ids, "times": series.times, "measured": measured, "bits": bits, "counts": series.counts}


def _restored(arrays: Mapping[str, NDArray[Any]]) -> Series:
    shape = (len(arrays["times"]), len(VARIABLES))
    mask = np.unpackbits(arrays["bits"], count=math.prod(shape)).reshape(shape).view(bool)
    values = np.zeros(shape, np.float32)
    values[mask] = arrays["measured"]
    return Series(arrays["ids"], arrays["times"], values, mask, arrays["counts"])


# ---- the text of records


def _parse_all(records: Mapping[str, bytes], q: float) -> Series:
    """The series of all records; bytes that are not UTF-8 fail where they stand."""
    each = [parse_record(name, content.decode(errors="replace"), q) for name, content in records.items()]
    if not each:
        raise DataError("no record")
    return Series(*map(np.concatenate, zip(*each, strict=True)))


def _lines(name: str, text: str) -> list[str]:
    """A record's lines; the first two are as they should be."""
    lines = _ended_lines(name, text)
    first, second = [*lines, "", ""][:2]
    if first != _HEADER:
        raise _fault(name, 1, repr(_HEADER), first)
    record = f"00:00,{_ID},{PurePosixPath(name).stem}"
    if second != record or not _is_record(name):
        raise _fault(name, 2, f"{record!r}, the file's name", second)
    return lines


def _ended_lines(name: str, text: str) -> list[str]:
    lines = text.split("\n")
    if lines.pop():
        raise _fault(name, len(lines) + 1, "a line that is ended", text[text.rfind("\n") + 1 :])
    return lines


def _entries(name: str, body: Sequence[str]) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
    """[L] hours, indices of variables, and values of a record's lines behind the first two."""
    hours, variables, values = [], [], []
    for number, line in enumerate(body, start=3):
        cells = _LINE.fullmatch(line)
        index = _INDEX.get(cells[3]) if cells else None
        if cells is None or index is None:
            raise _diagnosis(name, number, line)
        hours.append(int(cells[1]) + int(cells[2]) / 60)
        variables.append(index)
        values.append(float(cells[4]))
    too_large = np.flatnonzero(np.abs(values) > np.finfo(np.float32).max)
    if len(too_large):
        raise _diagnosis(name, int(too_large[0]) + 3, body[too_large[0]])
    return np.array(hours, np.float64), np.array(variables, np.int64), np.array(values, np.float64)


def _rows(record: int, times: NDArray[np.float64], variables: NDArray[np.int64], values: NDArray[np.float64]) -> Series:
    """One row for each time at which something was measured, and one at 0 h."""
    measured = values != _MISSING
    at, row = np.unique(np.append(times[measured], 0.0), return_inverse=True)
    shape = (len(at), len(VARIABLES))
    cell = row[:-1] * len(VARIABLES) + variables[measured]
    count = np.bincount(cell, minlength=math.prod(shape)).reshape(shape)
    total = np.bincount(cell, values[measured], minlength=math.prod(shape)).reshape(shape)
    return Series(
        ids=np.array([record]),
        times=at.astype(np.float32),
        values=(total / np.maximum(count, 1)).astype(np.float32),
        mask=count > 0,
        counts=np.array([len(at)]),
    )


def _diagnosis(name: str, number: int, line: str) -> DataError:
    """What is wrong with a record's line that is not as it should be."""
    cells = line.split(",")
    if len(cells) != 3:
        return _fault(name, number, "HH:MM,Parameter,Value", line)
    time, variable, value = cells
    if not _TIME.fullmatch(time):
        return _fault(name, number, "a time HH:MM", time)
    if variable not in _INDEX:
        return _fault(name, number, f"one of the {len(VARIABLES)} variables", variable)
    return _fault(name, number, "a number", value)


def _fault(name: str, number: int, expected: str, found: str) -> DataError:
    what = repr(found[:80]) if found else "nothing"
    return DataError(f"physionet: {name}:{number}: expected {expected}, found {what}")


def _is_record(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix == ".txt" and _is_id(path.stem)


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 18  # more might not be an int64


def _number(name: str) -> int:
    return int(PurePosixPath(name).stem)


def _check_quantization(q: float) -> None:
    if not 0 <= q < math.inf:
        raise ValueError(f"q: expected 0 or more hours, got {q}")
