"""`python -m dise_experiments`, the same as the command `dise`."""

from dise_experiments.cli import main

main()
