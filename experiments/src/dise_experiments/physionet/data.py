"""PhysioNet/Computing in Cardiology Challenge 2012: two days of each of 8,000 stays in intensive care, and the deaths.

Source: I. Silva, G. Moody, D. J. Scott, L. A. Celi, R. G. Mark, "Predicting in-hospital mortality of ICU patients: The
PhysioNet/Computing in Cardiology Challenge 2012", Computing in Cardiology 39, 2012; A. L. Goldberger et al.,
"PhysioBank, PhysioToolkit, and PhysioNet", Circulation 101(23), 2000 (ODC-BY 1.0).

3 records of set a and 7 of set b hold nothing but the description of the patient. They are kept, with one row at 0 h;
`Records.without_series` counts them. `dise_experiments.physionet.text` describes the records' other peculiarities.
"""

import hashlib
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from dise_experiments.common.errors import DataError
from dise_experiments.common.files import Source, read_bytes, store_arrays, stored_arrays, unpack_tar
from dise_experiments.physionet.records import VARIABLES, Records
from dise_experiments.physionet.text import (
    Series,
    check_quantization,
    content_hash,
    parse_outcomes,
    parse_record,
    records_of,
)

MIRRORS = ("https://physionet.org/files/challenge-2012/1.0.0/",)

# SHA-256 of each file's content. An archive may be repacked, so its hash is that of its records, see `content_hash`.
SHA256 = {
    "set-a.tar.gz": "fae6afa9d7ed7f1d5572e21daed0e1406b9930469386a26d50772ae26e3b7c32",
    "set-b.tar.gz": "5c98b9982e6abedc6c862fbe25deb75a601c7689fb892f3bc193a82cbe343f3f",
    "Outcomes-a.txt": "2613ea60ccda29f87571a7d6b09ad130858a8ccd66325bd073365925026883c2",
    "Outcomes-b.txt": "1305f29734da374a809483229a99f33a9230aa8d4fa74b1a2d6ad788136423d5",
}

SAMPLE_FILE = Path(__file__).with_name("sample.tar.gz")
OUTCOMES = "Outcomes.txt"  # in each part of the sample

_FOLDER = "physionet2012"
_FORMAT = 1  # version of the cached arrays; with another number every set is parsed again

T = TypeVar("T")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class PhysionetSplits:
    """Disjoint parts: `train` fits the model, `held_out` the selector, `test` and `set_b` are for the final evaluation.

    The first three are set a, on which published results are; no model is trained on set b's 4,000 stays.
    """

    train: Records
    held_out: Records
    test: Records
    set_b: Records

    @property
    def note(self) -> str:
        """The number of records without a time series, in one line."""
        parts = {"train": self.train, "held out": self.held_out, "test": self.test, "set b": self.set_b}
        counts = {name: part.without_series for name, part in parts.items()}
        each = ", ".join(f"{name} {count}" for name, count in counts.items())
        total = sum(map(len, parts.values()))
        return f"PhysioNet: {sum(counts.values())} of {total:,} records have no time series and are kept ({each})"


def load_physionet(
    data_dir: Path | None = None, *, q: float = 0.016, held_out: int = 640, seed: int = 0, download: bool = True
) -> PhysionetSplits:
    """All of sets a and b: 3,200 - `held_out` stays to train on, `held_out` held out, 800 and 4,000 to test on.

    Reads `data_dir`/physionet2012/{set-a.tar.gz, set-b.tar.gz, Outcomes-a.txt, Outcomes-b.txt}, else those of
    $DISE_DATA; neither folder is ever written to. Without both, reads the user's cache folder and, if `download` is
    set, downloads missing or damaged files into it from physionet.org. Parsed records are stored in the cache folder,
    so only the first call is slow.

    `test` is the published one: the head of a permutation of set a in the order of RecordIDs, scikit-learn's
    `train_test_split(..., train_size=0.8, random_state=42)`. `held_out` is the number of other stays that are held out;
    `seed` draws them. It is not the seed of a run: runs with different seeds train and select on the same stays. The
    held-out stays are the head of one permutation, so a smaller `held_out` is a subset of a larger one, and the head of
    each part of set a is a random subset. Set b is in the order of RecordIDs.

    Times are rounded to multiples of `q` hours, see `parse_record`. Logs `PhysionetSplits.note`.

    Errors: `DataError` for a file that is missing, damaged or cannot be downloaded; `ValueError` if `q` is negative or
    not finite, or if `held_out` is negative or leaves no stay to train on.
    """
    check_quantization(q)
    set_a, set_b = (_load_set(letter, data_dir, q=q, download=download) for letter in "ab")
    rest, test = _published_split(set_a)
    train, held = _hold_out(rest, held_out=held_out, seed=seed)
    splits = PhysionetSplits(train, held, test, set_b)
    _log.info(splits.note)
    return splits


def load_physionet_sample(*, q: float = 0.016) -> PhysionetSplits:
    """The real records shipped with the package, for tests and demos: 200 train, 50 held out, 50 test, 20 of set b.

    Each part is a random subset of the same part of `load_physionet()`, in the order of RecordIDs; SAMPLE.md says how
    they were drawn.

    Errors: `ValueError` if `q` is negative or not finite.
    """
    check_quantization(q)
    files = unpack_tar(read_bytes(SAMPLE_FILE))
    return PhysionetSplits(*(_sample_part(files, part, q) for part in ("train", "held_out", "test", "set_b")))


def file_path(name: str, data_dir: Path | None) -> Path:
    """Where `load_physionet` looks for one of the files named in `SHA256`."""
    return _outcomes().path(name, data_dir)


# ---- sets and their split


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
    unmatched = sorted(set(ids) ^ outcomes.keys())
    if unmatched:
        lacks = "no outcome for record" if unmatched[0] in ids else "an outcome but no record"
        more = f" and {len(unmatched) - 1} more unmatched" if len(unmatched) > 1 else ""
        raise DataError(
            f"physionet: {where}: expected an outcome for every record and no other, found {lacks} {unmatched[0]}{more}"
        )
    labels = torch.tensor([outcomes[record] for record in ids], dtype=torch.int64)
    ids, times, values, mask, counts = map(torch.from_numpy, series)
    return Records(ids, times, values, mask, counts, labels)


def _published_split(records: Records) -> tuple[Records, Records]:
    """Four fifths to train on and a fifth to test on."""
    order = torch.from_numpy(np.random.RandomState(42).permutation(len(records))).long()
    test = len(records) - len(records) * 4 // 5
    return records[order[test:]], records[order[:test]]


def _hold_out(records: Records, *, held_out: int, seed: int) -> tuple[Records, Records]:
    if not 0 <= held_out < len(records):
        raise ValueError(f"held_out: expected 0 to {len(records) - 1} training records, got {held_out}")
    # The stream of RandomState is frozen (NEP 19), so the split is the same with every version of NumPy.
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


def _read_archive(name: str, packed: bytes, *, q: float) -> Series:
    """A set's series, checked; the `DataError` says only what was found instead."""
    key = f"{hashlib.sha256(packed).hexdigest()} {float(q)!r} {_FORMAT}"
    kept = f"{name.removesuffix('.tar.gz')}-{hashlib.sha256(key.encode()).hexdigest()[:32]}.kept"
    arrays = stored_arrays(_FOLDER, kept)
    if arrays is not None:
        return _decoded(arrays)
    records = records_of(unpack_tar(packed))
    series = _located(lambda: _parse_all(records, q))
    digest = content_hash(records)
    if digest != SHA256[name]:
        raise DataError(f"{len(records):,} records with SHA-256 {digest}")
    store_arrays(_FOLDER, kept, _encoded(series))
    return series


def _read_outcomes(name: str, packed: bytes) -> dict[int, int]:
    """A set's outcomes, checked; the `DataError` says only what was found instead."""
    content = packed.replace(b"\r\n", b"\n")
    outcomes = _located(lambda: parse_outcomes(name, content.decode(errors="replace")))
    digest = hashlib.sha256(content).hexdigest()
    if digest != SHA256[name]:
        raise DataError(f"{len(outcomes):,} outcomes with SHA-256 {digest}")
    return outcomes


def _located(parse: Callable[[], T]) -> T:
    """The result of a parser. Parse before comparing hashes, since the parser can tell the place of the damage."""
    try:
        return parse()
    except DataError as error:
        raise DataError(f"damage ({error})") from error


def _encoded(series: Series) -> dict[str, NDArray[Any]]:
    """Arrays to store: measured values alone, which are one seventh of all."""
    measured, bits = series.values[series.mask], np.packbits(series.mask)
    return {"ids": series.ids, "times": series.times, "measured": measured, "bits": bits, "counts": series.counts}


def _decoded(arrays: Mapping[str, NDArray[Any]]) -> Series:
    shape = (len(arrays["times"]), len(VARIABLES))
    mask = np.unpackbits(arrays["bits"], count=math.prod(shape)).reshape(shape).view(bool)
    values = np.zeros(shape, np.float32)
    values[mask] = arrays["measured"]
    return Series(arrays["ids"], arrays["times"], values, mask, arrays["counts"])


def _parse_all(records: Mapping[str, bytes], q: float) -> Series:
    """The series of all records; the error of invalid UTF-8 names its line."""
    each = [parse_record(name, content.decode(errors="replace"), q) for name, content in records.items()]
    if not each:
        raise DataError("no record")
    return Series(*map(np.concatenate, zip(*each, strict=True)))
