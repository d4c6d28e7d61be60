import numpy as np
import pytest
import tensorflow as tf

from gmpq_tf.quantizers.pact import pact


def range_slope(x, a, bits, signed):
    a = tf.constant(a)
    with tf.GradientTape() as tape:
        tape.watch(a)
        y = pact(tf.constant(x), a, bits, signed)
    return tape.jacobian(y, a).numpy()


@pytest.mark.parametrize("bits", [2, 5, 8])
def test_range_gradient_of_equation_3(bits):
    x = np.array([-3.0, -0.1, 0.0, 0.4, 1.1, 1.3, 9.0], "float32")
    np.testing.assert_array_equal(
        range_slope(x, 1.2, bits, False), [0, 0, 0, 0, 0, 1, 1]
    )
    high = 2 ** (bits - 1) - 1
    np.testing.assert_allclose(
        range_slope(x, 1.2, bits, True), [-(high + 1) / high, 0, 0, 0, 0, 1, 1]
    )


def test_two_bits_by_hand():
    x = tf.constant([-1.0, 0.4, 0.5, 1.4, 1.5, 2.6, 7.0])
    np.testing.assert_allclose(pact(x, tf.constant(3.0), 2), [0, 0, 1, 1, 2, 3, 3])
    np.testing.assert_allclose(
        pact(x, tf.constant(1.0), 2, signed=True), [-1, 0, 1, 1, 1, 1, 1]
    )
