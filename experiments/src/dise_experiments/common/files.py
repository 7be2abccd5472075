"""A task's data files: where they are, how they are downloaded and checked, and a cache of parsed arrays."""

import gzip
import hashlib
import io
import os
import sys
import tarfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import pooch
from numpy.typing import NDArray

from dise.select.deploy.atomic import atomic_write
from dise_experiments.common.errors import DataError

T = TypeVar("T")


@dataclass(frozen=True)
class Source(Generic[T]):
    """Files of one data set that have the same format: where they are, where they come from, how they are checked.

    Attributes:
        title: name of the data set, the start of every message.
        folder: folder of the files, within a data folder and within the user's cache folder.
        pattern: pattern of the file names, for messages.
        mirrors: URLs to which a file's name is appended, in the order in which they are tried.
        expected: describes the expected content of a file, given its name.
        read: the checked content of a file, given its name and its bytes; its `DataError` says only what was found.
    """

    title: str
    folder: str
    pattern: str
    mirrors: tuple[str, ...]
    expected: Callable[[str], str]
    read: Callable[[str, bytes], T]

    def load(self, name: str, data_dir: Path | None, *, download: bool) -> T:
        """The checked content of a file.

        Reads `data_dir`/folder/name, else $DISE_DATA/folder/name; neither folder is ever written to. Without both,
        reads the user's cache folder and, if `download` is set, downloads a missing or damaged file into it.

        Errors: `DataError` if the file is missing, damaged or cannot be downloaded.
        """
        folder = data_folder(data_dir)
        path = self.path(name, data_dir)
        try:
            return self.read(name, read_bytes(path))
        except DataError as error:
            if folder is None and download:
                return self._download(path)
            remedy = (
                f"Allow the download, or {self._elsewhere}."
                if folder is None
                else f"Put an intact copy there, {self._elsewhere}, or leave both unset to download it."
            )
            raise self._error(path, found=error, remedy=remedy) from error

    def path(self, name: str, data_dir: Path | None) -> Path:
        """Where `load` looks for a file."""
        return (data_folder(data_dir) or _cache_folder()) / self.folder / name

    @property
    def _elsewhere(self) -> str:
        return f"point --data-dir or DISE_DATA at a folder that holds {self.folder}/{self.pattern}"

    def _error(self, path: Path, *, found: object, remedy: str) -> DataError:
        return DataError(f"{self.title}: {path}: expected {self.expected(path.name)}, found {found}. {remedy}")

    def _download(self, path: Path) -> T:
        """Fetch a file from the first mirror that has an intact copy."""
        failures = []
        for mirror in self.mirrors:
            try:
                return self._fetch(mirror + path.name, path)
            except (OSError, ValueError) as error:  # the network and the disk; the content
                failures.append(error)
        found = "; ".join(f"{mirror}: {error}" for mirror, error in zip(self.mirrors, failures, strict=True))
        remedy = f"Run again with a network, or {self._elsewhere}."
        raise self._error(path, found=f"no mirror to download it from ({found})", remedy=remedy) from failures[-1]

    def _fetch(self, url: str, path: Path) -> T:
        """Download a file; it appears in the cache only once its content is checked."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as partial:
            pooch.HTTPDownloader(progressbar=sys.stderr.isatty())(url, str(partial), None)
            return self.read(path.name, read_bytes(partial))


def data_folder(data_dir: Path | None) -> Path | None:
    """`data_dir`, else $DISE_DATA, else None; ~ is the user's home."""
    folder = data_dir or os.environ.get("DISE_DATA")
    return Path(folder).expanduser() if folder else None


def read_bytes(path: Path) -> bytes:
    """A file's bytes; the `DataError` says only what was found instead."""
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DataError("no such file") from error
    except OSError as error:
        raise DataError(f"a file that cannot be read ({error})") from error


def unpack_gzip(packed: bytes) -> bytes:
    """The content of a gzip file's bytes; the `DataError` says only what was found instead."""
    try:
        return gzip.decompress(packed)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"a file that cannot be unpacked ({error})") from error


def unpack_tar(packed: bytes) -> dict[str, bytes]:
    """The files in a .tar.gz archive's bytes by name; the `DataError` says only what was found instead."""
    try:
        with tarfile.open(fileobj=io.BytesIO(unpack_gzip(packed)), mode="r:") as archive:
            files = {member.name: archive.extractfile(member) for member in archive if member.isfile()}
            return {name: file.read() for name, file in files.items() if file}
    except tarfile.TarError as error:
        raise DataError(f"a file that cannot be unpacked ({error})") from error


def store_arrays(folder: str, name: str, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays to folder/name in the user's cache folder; do nothing if it cannot be written."""
    packed = io.BytesIO()
    np.savez(packed, allow_pickle=False, **dict(arrays))
    content = packed.getvalue()
    path = _cache_folder() / folder / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as partial:
            partial.write_bytes(hashlib.sha256(content).digest() + content)
    except OSError:
        return


def stored_arrays(folder: str, name: str) -> dict[str, NDArray[Any]] | None:
    """Arrays that `store_arrays` wrote; None if there are none, or their file is damaged."""
    try:
        content = (_cache_folder() / folder / name).read_bytes()
    except OSError:
        return None
    digest, packed = content[:32], content[32:]
    if hashlib.sha256(packed).digest() != digest:
        return None
    with np.load(io.BytesIO(packed)) as arrays:
        return dict(arrays)


def _cache_folder() -> Path:
    return Path(pooch.os_cache("dise"))
