"""Tables in 80 columns: no word is broken, no cell is lost, whatever the number of columns."""

import re

import pytest
from rich.console import Console

from dise_experiments.common.table import Table
from dise_experiments.run import terminal
from dise_experiments.run.terminal import blocks, print_table, say

LONG = Table(
    "A table with many columns",
    ["policy", "AUROC", "95 %", "difference from DOPRI", "95 %, paired", "run", "NFE per record", "flag"],
    [
        ["Dopri5(rtol=0.1, atol=0.01)", "0.83", "0.8012 … 0.8605", "-0.0021", "-0.0050 … +0.0001", "a-seed0", "3", ""],
        ["DISE (paper-dropout)", "0.8", "–", "–", "–", "z_end-error-seed0, paper-dropout", "36.95", "better than it"],
    ],
)  # fmt: skip


def words(lines):
    return sorted(word for line in lines for word in line.split() if set(word) != {"─"})


@pytest.mark.parametrize("width", [50, 60, 80, 120])
def test_tables_fit_the_width_and_no_word_is_broken(width):
    made = list(blocks(LONG, width))
    assert all(len(line) <= width for block in made for line in block)
    cells = [*LONG.header, *(cell for row in LONG.rows for cell in row)]
    shown = words(line for block in made for line in block)
    assert len(made) == 1 or len(shown) > len(words(cells))
    assert set(shown) == set(words(cells))


def test_every_block_starts_with_the_columns_that_identify_the_rows():
    rows = [["one", "1.00", "first run", "2.00", "3.00"], ["one", "1.50", "second run", "2.50", "3.50"]]
    made = list(blocks(Table("t", ["model", "a", "run", "b", "c"], rows), 24))
    assert [line.split() for block in made for line in block if "─" not in line and "." in line] == [
        ["one", "1.00", "first", "run"],
        ["one", "1.50", "second", "run"],
        ["one", "first", "run", "2.00"],
        ["one", "second", "run", "2.50"],
        ["one", "first", "run", "3.00"],
        ["one", "second", "run", "3.50"],
    ]


def test_a_table_that_fits_is_one_block_as_wide_as_its_cells():
    table = Table("t", ["run", "accuracy", "NFE"], [["a", "0.5", "20.00"], ["b", "0.25", "–"]])
    (block,) = blocks(table, 80)
    assert block == [
        "run  accuracy    NFE",
        "────────────────────",
        "a         0.5  20.00",
        "b        0.25      –",
    ]


@pytest.mark.parametrize(("width", "expected"), [(11, "1.00  2.00"), (10, "1.00  2.00"), (9, "1.00 2.00")])
def test_columns_are_nearer_to_each_other_before_a_table_is_split(width, expected):
    (block,) = blocks(Table("t", ["a", "b"], [["1.00", "2.00"]]), width)
    assert block[2] == expected
    assert len(list(blocks(Table("t", ["a", "b", "c"], [["1.00", "2.00", "3.00"]]), width))) == 2


def test_numbers_stay_on_one_line_and_text_is_wrapped_with_an_indent():
    (block,) = blocks(Table("t", ["policy", "95 %"], [["one two three four", "0.5 … 0.75"]]), 22)
    assert block[2:] == ["one two     0.5 … 0.75", "  three", "  four"]


def test_a_width_that_is_too_small_is_exceeded_rather_than_a_word_broken():
    (first, second) = blocks(Table("t", ["policy", "a", "b"], [["unbreakable", "1.0000", "2"]]), 8)
    assert first[2] == "unbreakable  1.0000"
    assert second[2] == "unbreakable  2"


@pytest.mark.parametrize("rows", [[["flow-none-seed0, paper", "0.5", ""]], []])
def test_headers_make_no_column_wider_than_its_cells(rows):
    (block,) = blocks(Table("title", ["run", "a header of many words", ""], rows), 80)
    head = block[: block.index(next(line for line in block if line.startswith("─")))]
    assert [word for line in head for word in line.split()] == ["a", "header", "of", "many", "run", "words"]
    assert len(head) == 5


def printed(monkeypatch, width):
    console = Console(width=width, record=True)
    monkeypatch.setattr(terminal, "console", console)
    monkeypatch.setattr(terminal, "errors", console)
    return console


def test_titles_notes_and_brackets_are_printed_as_they_are(monkeypatch):
    console = printed(monkeypatch, 40)
    title, note = "[bold] " + "title " * 10, "first [red] " + "note " * 12 + "\nsecond"
    print_table(Table(title, ["x"], [["a[/b]"]], note))
    text = console.export_text()
    assert all(len(line) <= 40 for line in text.splitlines())
    assert text.split() == f"{title} x {'─' * 5} a[/b] {note}".split()
    assert re.search(r"note\nsecond\n", text)


def test_lines_are_wrapped_but_paths_stay_whole(monkeypatch):
    console = printed(monkeypatch, 40)
    path = "/a/folder/that-is/longer/than-the-width/of-the-terminal"
    say(f"training some-run-with-a-long-name in {path}")
    assert console.export_text().splitlines() == ["training some-run-with-a-long-name in", path]
