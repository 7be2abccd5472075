import sys

import pytest

from dise_experiments import cli


@pytest.fixture
def dise(monkeypatch, capsys):
    """dise(*arguments): what main() did, as (exit code, stdout, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["dise", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return ended.value.code, captured.out, captured.err

    return run
