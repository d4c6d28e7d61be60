"""Result tables: units, alignment, width."""

import numpy as np
import pytest

from gmpq_tf.report import ResultRow, format_table
from gmpq_tf.report.table import format_bytes, format_percent, giga_decimals

ROWS = (
    ResultRow("float", 0.9861, 12_801_671_168, 310_000),
    ResultRow("uniform W3A3", 0.95, 137_000_000, 30_100, 64_000, 0.9475, 0.997),
    ResultRow("searched", 1.0, 135_400_000, 29_950, 1_234_567, 1.0, 1.0),
)


def test_rows_read_back_from_the_text():
    lines = format_table(ROWS).splitlines()
    assert lines[0].split() == [
        *("model", "accuracy", "GBOPs", "weights", "file", ".tflite", "agreement")
    ]
    assert lines[2].split() == ["float", "98.61", "%", "12.802", "310.0", "kB", *"---"]
    assert lines[3].split()[2:5] == ["95.00", "%", "0.137"]
    assert lines[4].split() == [
        *("searched", "100.00", "%", "0.135", "29.9", "kB"),
        *("1.23", "MB", "100.00", "%", "100.00", "%"),
    ]


def test_agreement_is_with_the_model_in_the_files_integers_where_known():
    row = ResultRow(
        *("searched", 0.95, 1e9, 3e4, 6e4, 0.94, 0.9),
        twin_accuracy=0.94,
        twin_agreement=1.0,
    )
    assert format_table([row]).splitlines()[2].split()[-2:] == ["100.00", "%"]
    row = ResultRow("searched", 0.95, 1e9, 3e4, 6e4, 0.94, 0.9)
    assert format_table([row]).splitlines()[2].split()[-2:] == ["90.00", "%"]


def test_without_labels_the_float_model_stands_for_accuracy():
    bare = ResultRow("a", None, 1e9, 3e4, labelled=False, float_agreement=0.985)
    head, _, line = format_table([bare]).splitlines()
    assert "accuracy" not in head and ".tflite" not in head
    assert head.endswith("as float") and line.endswith("98.50 %")
    # Beside a row that has an accuracy nothing is left out.
    head = format_table([bare, ROWS[0]]).splitlines()[0]
    assert "accuracy" in head and ".tflite" in head and "as float" in head


def test_columns_line_up_within_88():
    lines = format_table(ROWS).splitlines()
    assert {len(line) for line in lines} == {len(lines[1])}
    assert len(lines[1]) <= 88


def test_long_name_goes_on_below():
    name = "searched at the budget of uniform W3A3, eta = 0"
    row = ResultRow(name, 0.5, 1.8576e12, 999_000, 999_000, 1.0, 1.0)
    lines = format_table([row]).splitlines()
    assert max(map(len, lines)) <= 88
    assert " ".join(line[:26].strip() for line in lines[2:]) == name


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, "-"),
        (812, "812 B"),
        (1_000, "1.0 kB"),
        (98_496, "98.5 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.00 MB"),
        (46_830_571, "46.83 MB"),
    ],
)
def test_bytes(count, text):
    assert format_bytes(count) == text


def test_percent():
    assert [format_percent(x) for x in (None, 0, 0.87654, 1)] == [
        *("-", "0.00 %", "87.65 %", "100.00 %")
    ]


@pytest.mark.parametrize(
    ("least", "decimals"),
    [(1.8576e12, 0), (12.8e9, 1), (1e9, 2), (0.0771e9, 4), (0.137e9, 3), (5, 6)],
)
def test_decimals_show_three_digits(least, decimals):
    assert giga_decimals([least, 1e13]) == decimals


def test_numpy_numbers_will_do():
    row = ResultRow("float", np.float32(0.5), np.int64(10**9), np.int32(100))
    assert format_table([row]).splitlines()[2].split()[1:4] == ["50.00", "%", "1.00"]
