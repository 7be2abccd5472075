"""Runs torchdiffeq's own tests with `dise.torchdiffeq` in its place, and prints what passed, file by file.

    git clone --branch master https://github.com/rtqichen/torchdiffeq  # a88aac5 is release 0.2.5
    python benchmarks/torchdiffeq_tests.py torchdiffeq/tests [event_tests ...]

A test with subtests counts as its subtests. SciPy is needed, torchdiffeq itself is not.
"""

import argparse
import sys
import unittest
import warnings
from pathlib import Path

import dise.torchdiffeq

FILES = ("api_tests", "event_tests", "norm_tests", "gradient_tests", "odeint_tests")


class CountingResult(unittest.TestResult):
    """Counts passed and failed subtests, and tests without any."""

    def __init__(self) -> None:
        super().__init__()
        self.passed = 0
        self.failed: list[str] = []
        self._subtests = 0

    def startTest(self, test: unittest.TestCase) -> None:  # noqa: N802
        super().startTest(test)
        self._subtests = 0

    def addSubTest(self, test, subtest, err) -> None:  # noqa: N802
        self._subtests += 1
        self._count(subtest.id(), err)

    def addSuccess(self, test: unittest.TestCase) -> None:  # noqa: N802
        self.passed += self._subtests == 0

    def addFailure(self, test, err) -> None:  # noqa: N802
        self._count(test.id(), err)

    addError = addFailure  # noqa: N815

    def _count(self, name, err) -> None:
        if err is None:
            self.passed += 1
        else:
            self.failed.append(f"{name}: {err[0].__name__}: {str(err[1]).splitlines()[0] if str(err[1]) else ''}")


def main() -> int:
    """Print a line per file, and the failures; 1 if there are any."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tests", type=Path, help="torchdiffeq's folder tests/")
    parser.add_argument("files", nargs="*", default=FILES, help="names of files there; default: all")
    arguments = parser.parse_args()
    sys.path.insert(0, str(arguments.tests))
    sys.modules["torchdiffeq"] = dise.torchdiffeq
    warnings.simplefilter("ignore")
    failed = 0
    for file in arguments.files:
        result = CountingResult()
        unittest.defaultTestLoader.loadTestsFromName(file).run(result)
        print(f"{file}: {result.passed} of {result.passed + len(result.failed)} passed", flush=True)
        print(*(f"    {failure}\n" for failure in result.failed), sep="", end="")
        failed += len(result.failed)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
