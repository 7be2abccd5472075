"""Where a task's data files lie, how they get there, and arrays kept for the next time."""

import gzip
import hashlib
import importlib.util
import io
import os
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from dise_experiments.common.errors import DataError

T = TypeVar("T")


@dataclass(frozen=True)
class Source(Generic[T]):
    """Files of one data set that are read alike: where they lie, where they come from, what they should be.

    Attributes:
        title: of the data set, at the head of every message.
        folder: of the files within a data folder and within the user's cache folder.
        pattern: of the files' names, for messages.
        mirrors: URLs that a file's name is appended to, in the order in which they are tried.
        expected: says by a file's name what it should be.
        read: the checked content of a file; its `DataError` says only what was found instead.
    """

    title: str
    folder: str
    pattern: str
    mirrors: tuple[str, ...]
    expected: Callable[[str], str]
    read: Callable[[Path], T]

    def load(self, name: str, data_dir: Path | None, *, download: bool) -> T:
        """The content of a file.

        Reads `data_dir`/folder/name, else $DISE_DATA/folder/name; neither is ever written to. With neither, reads
        the user's cache folder, and downloads what is missing or damaged there if `download` is set.

        Errors: `DataError` if the file is missing, damaged or cannot be downloaded.
        """
        folder = data_folder(data_dir)
        if folder is None:
            return self._read_cached(self._cache() / name, download=download)
        path = folder / self.folder / name
        try:
            return self.read(path)
        except DataError as error:
            remedy = f"Put an intact copy there, {self._elsewhere}, or leave both unset to download it."
            raise self._error(path, found=error, remedy=remedy) from error

    def path(self, name: str, data_dir: Path | None) -> Path:
        """Where `load` looks for a file.

        Errors: `DataError` if that is the cache folder and pooch, which knows it, is missing.
        """
        folder = data_folder(data_dir)
        return (self._cache() if folder is None else folder / self.folder) / name

    @property
    def _elsewhere(self) -> str:
        return f"point --data-dir or DISE_DATA at a folder that holds {self.folder}/{self.pattern}"

    def _error(self, path: Path, *, found: object, remedy: str) -> DataError:
        return DataError(f"{self.title}: {path}: expected {self.expected(path.name)}, found {found}. {remedy}")

    def _read_cached(self, path: Path, *, download: bool) -> T:
        try:
            return self.read(path)
        except DataError as error:
            if download:
                return self._download(path)
            raise self._error(path, found=error, remedy=f"Allow the download, or {self._elsewhere}.") from error

    def _download(self, path: Path) -> T:
        """Fetches a file from the first mirror that has it; `path` appears only once its content is checked."""
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
        path.parent.mkdir(parents=True, exist_ok=True)
        # In the same folder, so that the move is atomic: a run beside this one never reads half a file.
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            arrived = Path(folder) / path.name
            self._pooch().HTTPDownloader(progressbar=_can_show_progress())(url, str(arrived), None)
            content = self.read(arrived)
            arrived.replace(path)
        return content

    def _cache(self) -> Path:
        return Path(self._pooch().os_cache("dise")) / self.folder

    def _pooch(self) -> ModuleType:
        try:
            return _pooch()
        except ImportError as error:
            message = f"{self.title}: downloading needs pooch: pip install 'dise[tasks]', or {self._elsewhere}."
            raise DataError(message) from error


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


def remember(folder: str, name: str, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Writes arrays to folder/name in the user's cache folder; does nothing where it cannot write."""
    packed = io.BytesIO()
    np.savez(packed, allow_pickle=False, **dict(arrays))
    content = packed.getvalue()
    try:
        path = Path(_pooch().os_cache("dise")) / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as beside:  # so that the move is atomic
            written = Path(beside) / name
            written.write_bytes(hashlib.sha256(content).digest() + content)
            written.replace(path)
    except (ImportError, OSError):
        return


def recall(folder: str, name: str) -> dict[str, NDArray[Any]] | None:
    """Arrays that `remember` wrote; None if there are none, or their file is damaged."""
    try:
        content = (Path(_pooch().os_cache("dise")) / folder / name).read_bytes()
    except (ImportError, OSError):
        return None
    digest, packed = content[:32], content[32:]
    if hashlib.sha256(packed).digest() != digest:
        return None
    with np.load(io.BytesIO(packed)) as arrays:
        return dict(arrays)


def _can_show_progress() -> bool:
    return sys.stderr.isatty() and importlib.util.find_spec("tqdm") is not None


def _pooch() -> ModuleType:
    # Not imported above: samples and given folders work without it.
    return importlib.import_module("pooch")
