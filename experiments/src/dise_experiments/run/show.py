"""Reports in the terminal."""

from pathlib import Path

from dise_experiments.run.report import write_report
from dise_experiments.run.terminal import print_lines, print_table


def print_report(folder: Path) -> None:
    """Write the report of a preset's folder, and print its tables and its conclusion."""
    report = write_report(folder)
    for table in report.tables:
        print_table(table)
    print_lines(report.conclusion)
