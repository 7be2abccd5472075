"""Makes physionet/sample.tar.gz of dise_experiments, the part of PhysioNet 2012 that is shipped with the package.

    python tools/make_physionet_sample.py --data-dir DIR

The same data give the same files: the draw has fixed seeds.
"""

import argparse
import gzip
import io
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from dise_experiments.common.errors import DataError
from dise_experiments.common.files import read_bytes, unpack_tar
from dise_experiments.physionet.data import (
    OUTCOMES,
    SAMPLE_FILE,
    PhysionetSplits,
    file_path,
    load_physionet,
)
from dise_experiments.physionet.text import records_of

TRAIN, HELD_OUT, TEST, SET_B = 200, 50, 50, 20
SEED = 0


def draw(full: PhysionetSplits) -> dict[str, list[int]]:
    """RecordIDs of each part of the sample: a random part of that part of the full data."""
    rows = torch.from_numpy(np.random.RandomState(SEED).permutation(len(full.set_b))[:SET_B])
    # `load_physionet` leaves the parts of set a in a random order, so their heads are random draws.
    parts = {
        "train": full.train[:TRAIN],
        "held_out": full.held_out[:HELD_OUT],
        "test": full.test[:TEST],
        "set_b": full.set_b[rows],
    }
    return {part: sorted(records.ids.tolist()) for part, records in parts.items()}


def collect(drawn: Mapping[str, list[int]], data_dir: Path | None) -> dict[str, bytes]:
    """The sample's files by name: the published records, and of the outcomes files the lines of these records."""
    files = {}
    for part, ids in drawn.items():
        letter = "b" if part == "set_b" else "a"
        packed = read_bytes(file_path(f"set-{letter}.tar.gz", data_dir))
        records = {PurePosixPath(name).name: text for name, text in records_of(unpack_tar(packed)).items()}
        outcomes = read_bytes(file_path(f"Outcomes-{letter}.txt", data_dir))
        files[f"{part}/{OUTCOMES}"] = _lines_of(outcomes, ids)
        files |= {f"{part}/{record}.txt": records[f"{record}.txt"] for record in ids}
    return files


def pack(files: Mapping[str, bytes]) -> bytes:
    """A .tar.gz archive that depends on the files alone, not on the clock or the user."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)  # no time, no owner
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return gzip.compress(tar.getvalue(), compresslevel=9, mtime=0)


def _lines_of(outcomes: bytes, ids: list[int]) -> bytes:
    """The header and the lines of these RecordIDs, which stand first in them."""
    header, *lines = outcomes.splitlines(keepends=True)
    return header + b"".join(line for line in lines if int(line.split(b",")[0]) in ids)


def main() -> None:
    """Draws, writes and says how large the file is."""
    parser = argparse.ArgumentParser(description="Make the PhysioNet sample that is shipped with the package.")
    parser.add_argument("--data-dir", type=Path, help="folder that holds physionet2012/* (default: $DISE_DATA)")
    parser.add_argument("--out", type=Path, default=SAMPLE_FILE, help="file to write (default: %(default)s)")
    options = parser.parse_args()
    try:
        full = load_physionet(options.data_dir)
        files = collect(draw(full), options.data_dir)
    except DataError as error:
        sys.exit(str(error))
    options.out.write_bytes(pack(files))
    print(f"{options.out}: {options.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
