import pytest

from gmpq_tf.align import align


def test_first_column_is_flush_left_and_others_right():
    table = align(("layer", "bits"), [("a", "8"), ("longer", "3 -> 10")])
    assert table.splitlines() == [
        "layer      bits",
        "------  -------",
        "a             8",
        "longer  3 -> 10",
    ]


def test_empty_cells_leave_no_blanks_at_the_end():
    assert align(("a", "b"), [("x", "")]).splitlines()[-1] == "x"


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="zip"):
        align(("a", "b"), [("x",)])
