import numpy as np
import pytest
import tensorflow as tf

from gmpq_tf.quantizers.max_abs import max_abs, max_abs_step

KERNEL = np.random.default_rng(0).normal(size=(3, 3, 4, 6)).astype("float32")


def test_largest_weight_is_on_the_outermost_code():
    steps = max_abs_step(tf.constant(KERNEL), 4, (0, 1, 2)).numpy()
    assert steps.shape == (1, 1, 1, 6)
    np.testing.assert_allclose(steps * 7, np.abs(KERNEL).max((0, 1, 2), keepdims=True))
    tensor = float(max_abs_step(tf.constant(KERNEL), 4))
    assert tensor * 7 == pytest.approx(np.abs(KERNEL).max())


def test_two_bits_by_hand():
    kernel = tf.constant([-2.0, -0.9, 0.9, 1.1, 2.0])
    np.testing.assert_allclose(max_abs(kernel, 2), [-2, 0, 0, 2, 2])


@pytest.mark.parametrize("bits", range(2, 9))
def test_gradient_is_the_identity_even_for_the_largest_weight(bits):
    for seed in range(20):
        kernel = np.random.default_rng(seed).normal(size=(50, 4)).astype("float32")
        x = tf.constant(kernel)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = max_abs(x, bits, (0,))
        np.testing.assert_array_equal(tape.gradient(y, x), 1.0)


def test_zero_kernel_stays_zero():
    zeros = tf.zeros((3, 3, 2, 2))
    np.testing.assert_array_equal(max_abs(zeros, 4, (0, 1, 2)), 0.0)
