"""One search of the step of least error, in NumPy and in a TensorFlow graph."""

import numpy as np
import pytest
import tensorflow as tf

from gmpq_tf.export.tfmot.fake_quantizers import InputFakeQuantizer, KernelFakeQuantizer
from gmpq_tf.quantizers import InputQuantizer, KernelQuantizer
from gmpq_tf.quantizers.line_search import least_error_step
from gmpq_tf.transform.calibrate import Observer, best_grid

RANDOM = np.random.default_rng(0)
VALUES = RANDOM.normal(0.3, 1, 5000).astype("float32")


def test_each_element_is_searched_alone_and_the_first_of_equals_wins():
    wanted = np.array([2.0, 3.0, 9.0])
    steps = [np.full(3, s) for s in (1.0, 2.0, 4.0, 8.0)]
    found = least_error_step(steps, lambda step: np.abs(step - wanted))
    np.testing.assert_array_equal(found, [2.0, 2.0, 8.0])


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
