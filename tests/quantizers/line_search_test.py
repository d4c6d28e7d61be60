"""One search of the step of least error, in NumPy and in a TensorFlow graph."""

import numpy as np
import pytest
import tensorflow as tf

from gmpq_tf.export.tfmot.fake_quantizers import InputFakeQuantizer, KernelFakeQuantizer
from gmpq_tf.quantizers import InputQuantizer, KernelQuantizer
from gmpq_tf.quantizers.line_search import (
    KERNEL_FRACTIONS,
    least_error_step,
    least_error_steps,
)
from gmpq_tf.quantizers.lsq import lsq_kernel
from gmpq_tf.transform.calibrate import Observer, best_grid

RANDOM = np.random.default_rng(0)
VALUES = RANDOM.normal(0.3, 1, 5000).astype("float32")


def test_each_element_is_searched_alone_and_the_first_of_equals_wins():
    wanted = np.array([2.0, 3.0, 9.0])
    steps = [np.full(3, s) for s in (1.0, 2.0, 4.0, 8.0)]
    found = least_error_step(steps, lambda step: np.abs(step - wanted))
    np.testing.assert_array_equal(found, [2.0, 2.0, 8.0])


def on_a_grid(shape):
    """Weights that some of the steps tried hold exactly: errors next to nothing."""
    return (RANDOM.integers(-7, 8, shape) * 2.0**-5).astype("float32")


KERNELS = {
    "normal": RANDOM.normal(size=(288, 24)),
    "one column": RANDOM.normal(size=(3000, 1)),
    "depthwise": RANDOM.laplace(size=(9, 400)),
    "two rows": RANDOM.normal(size=(2, 300)),
    "one row": RANDOM.normal(size=(1, 50)),
    "outliers": RANDOM.standard_t(1.5, size=(64, 40)),
    "on a grid": on_a_grid((36, 50)),
    "a dead column": RANDOM.normal(size=(27, 3)) * [1, 0, 1],
    "next to nothing": RANDOM.normal(size=(27, 8)) * 10.0 ** -np.arange(2, 40, 5),
    "huge": RANDOM.normal(size=(27, 4)) * [1e5, 1e20, 1e30, 1e37],
}


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("name", KERNELS)
def test_steps_of_kernels_are_bit_for_bit_those_of_trying_all(name, bits):
    limit = 2 ** (bits - 1) - 1
    kernel = KERNELS[name].astype("float32")
    base = np.maximum(np.abs(kernel).max(axis=0), 1e-6) / limit
    tried = base * KERNEL_FRACTIONS[:, None]
    errors = [
        np.square(np.round(np.clip(kernel / step, -limit, limit)) * step - kernel)
        for step in tried
    ]
    first = np.argmin([error.sum(axis=0) for error in errors], axis=0)
    expected = tried[first, np.arange(kernel.shape[1])]
    found = least_error_steps(kernel, limit, lsq_kernel.nearest(bits))
    np.testing.assert_array_equal(found, expected)


class WithoutSampling(Observer):
    """Sees all values, as the first batch of a fake quantizer does."""

    @property
    def sample(self):
        return VALUES


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("signed", [False, True, None])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_first_batch_gives_the_range_that_calibration_gives(bits, signed, nested):
    observer = WithoutSampling(0)
    observer(VALUES)
    quantizer = InputQuantizer(bits, signed, power_of_two=nested)
    step, zero = best_grid(observer, quantizer, 0)
    log2, zero_code = InputFakeQuantizer(bits, signed, power_of_two=nested)._fit(
        tf.constant(VALUES)
    )
    limit = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    np.testing.assert_allclose(2.0 ** float(log2[0]) / limit, step, rtol=1e-5)
    assert int(zero_code[0]) == zero


def test_a_silent_first_batch_keeps_the_default_range():
    log2, _ = InputFakeQuantizer(4, False)._fit(tf.zeros([8, 3]))
    np.testing.assert_allclose(2.0 ** float(log2[0]), 6.0, rtol=1e-6)


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_the_first_steps_of_a_kernel_are_those_of_a_student(bits):
    kernel = RANDOM.normal(size=(3, 3, 4, 5)).astype("float32")
    quantizer = KernelQuantizer(bits, "lsq", (0, 1, 2))
    quantizer.build(kernel.shape)
    quantizer.fit_steps(kernel)
    fake = KernelFakeQuantizer(bits, "lsq", (0, 1, 2))
    found = fake._fit(tf.constant(kernel), (1, 1, 1, 1, 5))
    np.testing.assert_allclose(found, quantizer.log2_step, atol=1e-5)
