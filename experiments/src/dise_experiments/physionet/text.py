"""The text files of the PhysioNet challenge 2012: one record per stay, and the outcomes of all stays.

All records of sets a and b have these peculiarities:

- A stay's first five values describe the patient and have the time 00:00; there -1 means unknown (Height 3,824 times,
  Weight 673, Gender 8). No other value is -1, and none can be -1 in a living patient: -1 is read as "not measured"
  everywhere. The published latent-ODE code reads it as a value.
- Other impossible values are kept, such as 36 temperatures of -17.8 °C, which is 0 °F.
- Values may be in scientific notation (AST 1.422e+04). No name and no value is empty: an empty one is an error here.
"""

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dise_experiments.common.errors import DataError
from dise_experiments.physionet.records import VARIABLES

_MISSING = -1
_HEADER = "Time,Parameter,Value"
_LINE = re.compile(r"(\d\d):([0-5]\d),([^,]*),([+-]?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)", re.ASCII)
_TIME = re.compile(r"\d\d:[0-5]\d", re.ASCII)
_INDEX = {name: index for index, name in enumerate(VARIABLES)}
_ID, _LABEL = "RecordID", "In-hospital_death"


class Series(NamedTuple):
    """The measurements of N stays: `dise_experiments.physionet.records.Records` without labels, in NumPy."""

    ids: NDArray[np.int64]
    times: NDArray[np.float32]
    values: NDArray[np.float32]
    mask: NDArray[np.bool_]
    counts: NDArray[np.int64]


def parse_record(name: str, text: str, q: float) -> Series:
    """The series of one stay, from the text of its RecordID.txt.

    A time HH:MM is t = HH + MM/60 hours, rounded to round(t/q)·q; q = 0 means no rounding. Values with the same rounded
    time form one row; several values of one variable in a row are averaged. -1 means not measured. The first row is at
    0 h and exists even if nothing was measured then.

    Errors: `DataError` "physionet: FILE:LINE: expected …, found …" where the text differs from the published format:
    the header, the RecordID of the file's name at 00:00, then lines HH:MM,Parameter,Value in the order of time, each
    ending with a newline; `ValueError` if `q` is negative or not finite.
    """
    check_quantization(q)
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
    """In-hospital deaths, 0 or 1, by RecordID, from the text of an outcomes file: a header, then one line per record.

    Errors: `DataError` "physionet: FILE:LINE: expected …, found …" for a header without RecordID or In-hospital_death,
    and for a line that is cut off, has more or fewer cells than the header, whose RecordID is not a number or occurs
    twice, or whose In-hospital_death is neither 0 nor 1.
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
            raise _fault(name, number, "a RecordID that occurs once", record)
        if label not in ("0", "1"):
            raise _fault(name, number, f"{_LABEL} 0 or 1", label)
        outcomes[int(record)] = int(label)
    return outcomes


def records_of(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files named RecordID.txt of an archive's files, in the order of RecordIDs, with Unix line ends."""
    named = {name: content for name, content in files.items() if _is_record(name)}
    return {name: named[name].replace(b"\r\n", b"\n") for name in sorted(named, key=_number)}


def content_hash(records: Mapping[str, bytes]) -> str:
    """SHA-256 over the names (without folders) and contents of records, in the order of RecordIDs."""
    digest = hashlib.sha256()
    for name in sorted(records, key=_number):
        digest.update(PurePosixPath(name).name.encode() + b"\0" + records[name] + b"\0")
    return digest.hexdigest()


def check_quantization(q: float) -> None:
    """Raise `ValueError` if q is negative or not finite."""
    if not 0 <= q < math.inf:
        raise ValueError(f"q: expected 0 or more hours, got {q}")


def _lines(name: str, text: str) -> list[str]:
    """A record's lines, the first two checked."""
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
        raise _fault(name, len(lines) + 1, "a line that ends with a newline", text[text.rfind("\n") + 1 :])
    return lines


def _entries(name: str, body: Sequence[str]) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
    """[L] hours, indices of variables, and values of a record's lines after the first two."""
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
    """The error of a malformed line of a record."""
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
    return text.isascii() and text.isdecimal() and len(text) <= 18  # a longer number may exceed int64


def _number(name: str) -> int:
    return int(PurePosixPath(name).stem)
