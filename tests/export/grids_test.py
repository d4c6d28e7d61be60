import numpy as np
import pytest

from gmpq_tf.export.integers.grids import Grid


@pytest.mark.parametrize("bits", range(2, 9))
def test_unsigned_grids_saturate_above_at_the_largest_code(bits):
    grid = Grid(0.5, 0, 2**bits - 1)
    codes = np.clip(np.arange(-300, 300) + grid.zero_point, -128, 127) - grid.zero_point
    assert codes.max() == grid.high
    assert grid.has_room_below(grid.zero_point) == (bits < 8)


@pytest.mark.parametrize("bits", range(2, 9))
def test_signed_grids_saturate_on_both_sides_after_a_shift(bits):
    limit = 2 ** (bits - 1) - 1
    grid, below = Grid(0.5, -limit, limit), -128 + limit
    codes = np.arange(-300, 300)
    stored = np.clip(codes + grid.zero_point, -128, 127)
    stored = np.clip(stored - grid.zero_point + below, -128, 127)
    np.testing.assert_array_equal(stored - below, np.clip(codes, -limit, limit))
    assert grid.has_room_below(grid.zero_point)
    assert not grid.has_room_below(below)


def test_a_grid_holds_its_part_but_no_other_step():
    whole = Grid(0.5, -127, 127)
    assert whole.holds(Grid(0.5, 0, 100))
    assert not whole.holds(Grid(0.5, 0, 255))
    assert not whole.holds(Grid(0.25, 0, 100))
