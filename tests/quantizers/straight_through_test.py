import numpy as np
import pytest
import tensorflow as tf

from gmpq_tf.quantizers.straight_through import (
    round_half_even,
    round_half_up,
    straight_through,
)

VALUES = np.array([-2.5, -1.5, -0.75, -0.5, 0.0, 0.25, 0.5, 1.5, 2.5], "float32")


def test_value_of_one_gradient_of_the_other():
    x = tf.constant([0.3, -1.0, 2.0])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = straight_through(tf.floor(x), tf.square(x))
    np.testing.assert_allclose(y, [0.0, -1.0, 2.0], atol=1e-6)
    np.testing.assert_allclose(tape.gradient(y, x), 2 * x.numpy())


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (round_half_up, [-2, -1, -1, 0, 0, 0, 1, 2, 3]),
        (round_half_even, [-2, -2, -1, 0, 0, 0, 0, 2, 2]),
    ],
)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_ties_and_identity_gradient(function, expected, dtype):
    x = tf.cast(VALUES, dtype)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = function(x)
    assert y.dtype == x.dtype
    np.testing.assert_array_equal(tf.cast(y, "float32"), expected)
    np.testing.assert_array_equal(tf.cast(tape.gradient(y, x), "float32"), 1.0)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_up_keeps_whole_numbers_to_255(dtype):
    codes = np.arange(256, dtype="float32")
    rounded = round_half_up(tf.cast(codes, dtype))
    np.testing.assert_array_equal(tf.cast(rounded, "float32"), codes)
