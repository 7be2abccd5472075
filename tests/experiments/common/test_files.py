"""`Source` is tested by what the tasks read with it: mnist/test_data.py, physionet/test_data.py."""

import gzip
import io
import tarfile
from pathlib import Path

import numpy as np
import pooch
import pytest

from dise_experiments.common.errors import DataError
from dise_experiments.common.files import data_folder, read_bytes, store_arrays, stored_arrays, unpack_gzip, unpack_tar

ARRAYS = {"counts": np.arange(3), "mask": np.array([True, False])}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The cache folder of files."""
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / project)
    return tmp_path / "dise" / "set"


def test_data_folder(monkeypatch):
    monkeypatch.delenv("DISE_DATA", raising=False)
    assert data_folder(None) is None
    monkeypatch.setenv("DISE_DATA", "")
    assert data_folder(None) is None
    monkeypatch.setenv("DISE_DATA", "/one")
    assert data_folder(None) == Path("/one")
    assert data_folder(Path("/two")) == Path("/two")
    monkeypatch.setenv("HOME", "/home/me")
    assert data_folder(Path("~/three")) == Path("/home/me/three")


def test_bytes_of_a_file(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    assert read_bytes(tmp_path / "file") == b"content"
    with pytest.raises(DataError, match=r"^no such file$"):
        read_bytes(tmp_path / "other")
    with pytest.raises(DataError, match=r"^a file that cannot be read "):
        read_bytes(tmp_path)


def archive_of(**files):
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w:gz") as archive:
        for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE):
            entry = tarfile.TarInfo(f"no file {kind}")
            entry.type, entry.linkname = kind, "/etc/hostname"
            archive.addfile(entry)
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return tar.getvalue()


def test_files_of_an_archive_are_read_and_nothing_else():
    assert unpack_tar(archive_of(one=b"1", two=b"", three=b"3" * 5000)) == {
        "one": b"1",
        "two": b"",
        "three": b"3" * 5000,
    }


@pytest.mark.parametrize(
    "packed",
    [b"other", gzip.compress(b"x" * 1000), gzip.compress(b""), archive_of(one=b"1")[:-30]],
    ids=["other", "file", "empty file", "cut short"],
)
def test_damaged_archive(packed):
    with pytest.raises(DataError, match=r"^a file that cannot be unpacked "):
        unpack_tar(packed)


def test_damaged_gzip_file():
    with pytest.raises(DataError, match=r"^a file that cannot be unpacked "):
        unpack_gzip(gzip.compress(b"content")[:-1])


def test_arrays_are_stored(cache):
    assert stored_arrays("set", "one") is None
    store_arrays("set", "one", ARRAYS)
    found = stored_arrays("set", "one")
    assert found.keys() == ARRAYS.keys()
    assert all(
        np.array_equal(found[name], array) and found[name].dtype == array.dtype for name, array in ARRAYS.items()
    )
    assert [path.name for path in cache.iterdir()] == ["one"]
    assert stored_arrays("set", "two") is None


def test_arrays_are_replaced():
    store_arrays("set", "one", ARRAYS)
    store_arrays("set", "one", {"other": np.zeros(2)})
    assert stored_arrays("set", "one").keys() == {"other"}


def test_damage_is_found_wherever_it_is(cache):
    store_arrays("set", "one", ARRAYS)
    intact = (cache / "one").read_bytes()
    for place in range(len(intact)):
        damaged = bytearray(intact)
        damaged[place] ^= 0x55
        (cache / "one").write_bytes(damaged)
        assert stored_arrays("set", "one") is None
        (cache / "one").write_bytes(intact[:place])
        assert stored_arrays("set", "one") is None


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path):
    (tmp_path / "dise").write_text("a file where the folder should be")
    store_arrays("set", "one", ARRAYS)
    assert stored_arrays("set", "one") is None
