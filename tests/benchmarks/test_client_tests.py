"""The bench of other packages' tests counts what passes with each library."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "client_tests.py"
TESTS = """
import unittest
import torchdiffeq

class Tests(unittest.TestCase):
    def test_of_both(self):
        self.assertTrue(callable(torchdiffeq.odeint))

    def test_of_one(self):
        self.assertFalse(torchdiffeq.__name__.startswith("dise"))

    def test_of_neither(self):
        for i in range(3):
            with self.subTest(i=i):
                self.assertNotEqual(i, 1)

    @unittest.skip("so")
    def test_skipped(self):
        pass
"""


@pytest.mark.long
def test_counts_of_both_libraries(tmp_path):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "some_tests.py").write_text(TESTS)
    (tmp_path / "tests" / "test_broken.py").write_text("import no_such_module")
    command = [sys.executable, str(SCRIPT), str(tmp_path / "tests")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONWARNINGS": "ignore"})
    lines = done.stdout.splitlines()
    assert done.returncode == 1, done.stderr
    assert lines[1].split() == ["tests/some_tests.py", *["4", "of", "5", "(1)"], *["3", "of", "5", "(1)"]]
    assert lines[2].split() == ["tests/test_broken.py", *["0", "of", "1"], *["0", "of", "1"]]
    assert [line.split(":")[0].strip() for line in lines[3:]] == ["failed with both"] * 2 + ["failed with dise alone"]
