"""Holds the shape of the code against its bars: circles and floors of imports, lengths of files and functions.

    python tools/structure.py

Floors and circles are import-linter's contracts in `pyproject.toml`; imports for annotations count. Code lines are
lines with code on them: no blank lines, comments or docstrings.
"""

import ast
import io
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

from importlinter import cli

ROOT = Path(__file__).parents[1]
SOURCES = ("src", "experiments/src")
FILE_LINES, FUNCTION_LINES = 400, 50
LONG_FUNCTIONS_ALLOWED = 1
SILENT = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.COMMENT, tokenize.ENDMARKER}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def main() -> int:
    """Print the counts; 1 if one is over its bar."""
    contracts_broken = cli.lint_imports()
    files = [path for source in SOURCES for path in sorted((ROOT / source).rglob("*.py"))]
    long_files = [f"{path.relative_to(ROOT)}: {n}" for path in files if (n := _lines(path)) > FILE_LINES]
    long_functions = [
        f"{path.relative_to(ROOT)}:{function.lineno} {function.name}: {n}"
        for path in files
        for function, n in code_lines(path.read_text(encoding="utf-8"))
        if n > FUNCTION_LINES
    ]
    print(f"files over {FILE_LINES} lines: {len(long_files)}", *long_files, sep="\n  ")
    print(f"functions over {FUNCTION_LINES} code lines: {len(long_functions)}", *long_functions, sep="\n  ")
    return int(bool(contracts_broken or long_files or len(long_functions) > LONG_FUNCTIONS_ALLOWED))


def code_lines(source: str) -> Iterator[tuple[Function, int]]:
    """Each function of a source, with the number of its code lines; those of functions inside it count too."""
    coded = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in SILENT:
            coded.update(range(token.start[0], token.end[0] + 1))
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | Function) and ast.get_docstring(node, clean=False) is not None:
            docstring = node.body[0]
            coded.difference_update(range(docstring.lineno, (docstring.end_lineno or docstring.lineno) + 1))
    for node in ast.walk(tree):
        if isinstance(node, Function):
            yield node, len(coded & set(range(node.lineno, (node.end_lineno or node.lineno) + 1)))


def _lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


if __name__ == "__main__":
    sys.exit(main())
