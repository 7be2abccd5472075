"""Runs public tests of torchdiffeq's and of packages on it, with torchdiffeq and with `dise.torchdiffeq` in its place.

    git clone https://github.com/rtqichen/torchdiffeq                # a88aac5 is release 0.2.5
    git clone https://github.com/patrick-kidger/torchcde             # 9ff6aba; some tests need torchsde, signatory
    git clone https://github.com/facebookresearch/flow_matching      # 11568d3
    python benchmarks/client_tests.py torchdiffeq/tests [api_tests ...]
    python benchmarks/client_tests.py torchcde/test
    python benchmarks/client_tests.py flow_matching/tests/solver

Prints what passed, file by file, and what failed; the exit status is 1 if anything fails with dise alone. A test with
subtests counts as its subtests. SciPy is needed.
"""

import argparse
import contextlib
import io
import os
import sys
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

LIBRARIES = ("torchdiffeq", "dise.torchdiffeq")


@dataclass
class Outcomes:
    """A pytest plugin that counts, file by file, tests (or subtests) that passed, failed, or were skipped.

    Args:
        passed, failed, skipped: numbers by file.
        failures: names of failed tests, each with the last line of its error.
    """

    passed: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    failures: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._with_subtests: set[str] = set()

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Count a file that cannot be imported as one failure."""
        if report.failed:
            self._fail(report.nodeid, report.nodeid, str(report.longrepr))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a test or subtest."""
        file, test = report.nodeid.split("::")[0], report.nodeid
        subtest = getattr(report, "context", None)
        if subtest is not None:
            self._with_subtests.add(test)
            test += f" {dict(subtest.kwargs)}"
        if report.failed:
            if subtest is not None or test not in self._with_subtests:
                self._fail(file, test, str(report.longrepr))
        elif report.skipped:
            self.skipped[file] += 1
        elif report.when == "call":
            self.passed[file] += subtest is not None or test not in self._with_subtests

    def _fail(self, file: str, test: str, error: str) -> None:
        self.failed[file] += 1
        lines = [line[1:].strip() for line in error.splitlines() if line.startswith("E ")]
        self.failures[test] = lines[0] if lines else error.strip().splitlines()[-1]


def outcomes(tests: Path, names: list[str], library: str) -> Outcomes:
    """What the tests in a folder come to with a library under torchdiffeq's name, in a process of its own."""
    if library != "torchdiffeq":
        import dise.torchdiffeq

        sys.modules["torchdiffeq"] = dise.torchdiffeq
    clone = next(folder for folder in tests.parents if not (folder / "__init__.py").exists())
    sys.path.insert(0, str(clone))
    os.chdir(clone)
    counted = Outcomes()
    paths = [str(tests / f"{name}.py") for name in names] or [str(tests)]
    files = "python_files=test_*.py *_tests.py"
    options = ["-q", "-c", os.devnull, f"--rootdir={clone}", "-o", files, "--continue-on-collection-errors"]
    options += ["-p", "no:cacheprovider", "-p", "no:xdist"]
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        pytest.main([*options, *paths], plugins=[counted])
    return counted


def main() -> int:
    """Print the table, and dise's own failures; 1 if there are any."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tests", type=Path, help="the folder of tests in a clone")
    parser.add_argument("files", nargs="*", default=[], help="names of files there; default: all")
    arguments = parser.parse_args()
    found = []
    for library in LIBRARIES:
        with ProcessPoolExecutor(1) as pool:
            found.append(pool.submit(outcomes, arguments.tests.resolve(), arguments.files, library).result())
    beside, ours = found
    print(f"{'passed (skipped)':40} {LIBRARIES[0]:>20} {LIBRARIES[1]:>20}")
    for file in sorted({file for one in found for counts in (one.passed, one.failed, one.skipped) for file in counts}):
        print(f"{file:40} {_cell(beside, file):>20} {_cell(ours, file):>20}")
    own = ours.failures.keys() - beside.failures.keys()
    for test, error in {**beside.failures, **ours.failures}.items():
        by = "dise alone" if test in own else "both" if test in ours.failures else "torchdiffeq alone"
        print(f"    failed with {by}: {test}: {error}")
    return int(bool(own))


def _cell(one: Outcomes, file: str) -> str:
    skipped = f" ({one.skipped[file]})" if one.skipped[file] else ""
    return f"{one.passed[file]} of {one.passed[file] + one.failed[file]}{skipped}"


if __name__ == "__main__":
    sys.exit(main())
