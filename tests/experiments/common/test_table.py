import pytest

from dise_experiments.common.table import Table, number, spread


def test_a_table_in_markdown():
    table = Table("Title", ["a", "b"], [["1", "2"], ["3", "4"]], "Note.")
    assert table.markdown() == "## Title\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n| 3 | 4 |\n\nNote.\n"


def test_without_a_note_or_rows():
    assert Table("Title", ("a",), []).markdown() == "## Title\n\n| a |\n| --- |\n"


@pytest.mark.parametrize(
    ("value", "digits", "text"), [(2.345, 1, "2.3"), (2, 2, "2.00"), (0.0, 2, "0.00"), (None, 4, "–"), (-1.5, 0, "-2")]
)
def test_a_number_or_a_dash(value, digits, text):
    assert number(value, digits) == text


def test_a_number_has_two_digits():
    assert number(26) == "26.00"


@pytest.mark.parametrize(
    ("values", "digits", "text"),
    [
        # 1, 2, 3 deviate by 1; 0 and 2 by √2
        ([1.0, 2.0, 3.0], 1, "2.0 ± 1.0"),
        ([0, 2], 3, "1.000 ± 1.414"),
        ([0.12345], 4, "0.1235"),
        ([], 4, "–"),
    ],
)
def test_mean_and_deviation(values, digits, text):
    assert spread(values, digits) == text
