"""Windows against the ranges and the recipes they are drawn from."""

import numpy as np
import pytest
import tensorflow as tf

from gmpq_tf.data.crops import (
    center_window,
    cut,
    random_resized_window,
    random_square_window,
)


def windows(draw, shape, count=400):
    @tf.function
    def one(index):
        return draw(tf.constant(shape), tf.stack([7, index]))

    return np.array([one(tf.constant(index)).numpy() for index in range(count)])


@pytest.mark.parametrize("shape", [(375, 500), (500, 375), (64, 64)])
def test_random_resized_windows_keep_to_the_ranges(shape):
    height, width = shape
    top, left, rows, columns = windows(random_resized_window, shape).T
    assert (np.minimum(top, left) >= 0).all()
    assert (top + rows <= height).all() and (left + columns <= width).all()
    areas, ratios = rows * columns / (height * width), columns / rows
    one_pixel = 1 / rows.min()
    assert areas.min() >= 0.08 and areas.max() <= 1
    assert ratios.min() >= 3 / 4 - one_pixel and ratios.max() <= 4 / 3 + 2 * one_pixel
    # The ranges are used in full, and every place of the image is seen.
    assert areas.min() < 0.12 and areas.max() > 0.75
    assert ratios.min() < 0.8 and ratios.max() > 1.25
    assert max(top.min(), left.min()) <= 2
    assert height - (top + rows).max() <= 2 and width - (left + columns).max() <= 2


@pytest.mark.parametrize("shape", [(256, 341), (341, 256)])
def test_random_squares_are_those_of_the_paper(shape):
    """Of an image whose shorter side is 256: 224 x 224, evenly over all places."""
    top, left, rows, columns = windows(random_square_window, shape, 2000).T
    assert set(rows) == set(columns) == {224}
    for start, side in ((top, shape[0]), (left, shape[1])):
        room = side - 224
        assert start.min() == 0 and start.max() == room
        # The mean of `count` even draws is off by more than 4 deviations once in 10^4.
        deviation = room / np.sqrt(12 * len(start))
        assert abs(start.mean() - room / 2) < 4 * deviation


@pytest.mark.parametrize("draw", [random_resized_window, random_square_window])
def test_seed_decides(draw):
    shape = tf.constant([100, 120])
    first, again, other = (draw(shape, [3, k]).numpy() for k in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("draw", [random_resized_window, random_square_window])
def test_smallest_image_is_kept_whole(draw):
    assert draw(tf.constant([1, 1]), [0, 0]).numpy().tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    "shape, share, window",
    [
        ((256, 341), 0.875, [16, 58, 224, 224]),  # 224 of 256, as the paper's.
        ((256, 256), 1.0, [0, 0, 256, 256]),
        ((10, 6), 0.5, [3, 1, 3, 3]),
        ((1, 5), 0.1, [0, 2, 1, 1]),
    ],
)
def test_center_window(shape, share, window):
    result = center_window(tf.constant(shape), share)
    assert result.numpy().tolist() == window


def test_cut_is_a_slice():
    image = np.arange(60).reshape(5, 6, 2)
    part = cut(tf.constant(image), tf.constant([1, 2, 3, 4]))
    np.testing.assert_array_equal(part, image[1:4, 2:6])
