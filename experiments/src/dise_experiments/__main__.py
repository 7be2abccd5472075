"""The command `dise`, and `python -m dise_experiments`."""

import sys


def main() -> None:
    """Run the command line; Ctrl-C ends it with one line, from the first moment on."""
    try:
        from dise_experiments.cli import main as command  # takes a while, in which one may press Ctrl-C

        command()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command continues\n")  # before rich is there
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
