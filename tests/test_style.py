"""The English of code and documentation: what this project's style rules out is not there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("src", "experiments/src", "benchmarks", "examples", "tools", "docs", "results", ".github")
PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "experiments/README.md")
WORDS = ("lest", "anew", "likewise", "nobody", "somebody", "whoever", "dearer", "at hand", "as ever", "for nothing")
UNITS = "evaluation|sample|step|stage|round|batch|call|image|record|point|feature|second|graph|row|draw"
RULED_OUT = {
    "a word": re.compile(rf"\b(?:{'|'.join(WORDS)})\b", re.IGNORECASE),
    "a fronted 'Of …'": re.compile(r"(?:^|[.:;!?] |\"\"\"|# |\* |- |\| )Of (?=[a-z`])", re.MULTILINE),
    "'as of' for 'see' or 'as in'": re.compile(r"\bas of `"),
    "'a' or 'an' for 'per' in a rate": re.compile(
        rf"\b(?:evaluations?(?: of f)?|NFE|ms|milliseconds|seconds|calls|reads?) an? (?:{UNITS})\b"
    ),
    "a clause for a noun": re.compile(r"\bwho (?:goes|starts|asks|calls|answers|runs|waits|wants|looks)\b"),
}


def texts():
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".md", ".yml", ".cpp"):
                yield path
    yield from (ROOT / page for page in PAGES)


@pytest.mark.parametrize("rule", RULED_OUT)
def test_what_the_style_rules_out_is_nowhere(rule):
    found = []
    for path in texts():
        text = path.read_text(encoding="utf-8")
        for match in RULED_OUT[rule].finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            found.append(f"{path.relative_to(ROOT)}:{line}: {match.group()!r}")
    assert found == []


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ("a word", "Nobody can ask now."),
        ("a fronted 'Of …'", "# Of complex states norms use the modulus"),
        ("a fronted 'Of …'", '"""Of fixed steps only a failed one is known."""'),
        ("'as of' for 'see' or 'as in'", "arguments as of `dise.solve`"),
        ("'a' or 'an' for 'per' in a rate", "two evaluations of f a step"),
        ("a clause for a noun", "who goes on tries the whole one"),
    ],
)
def test_the_rules_find_what_they_are_for(rule, text):
    assert RULED_OUT[rule].search(text)
