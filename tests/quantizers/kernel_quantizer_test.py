import numpy as np
import pytest
import tensorflow as tf

from gmpq_tf.policy import PolicyError
from gmpq_tf.quantizers import KERNEL_QUANTIZERS, KernelQuantizer
from tests.quantizers.memory import kept_for_backward

KERNEL = np.random.default_rng(0).normal(size=(3, 3, 4, 5)).astype("float32")


def built(*args, **kwargs):
    layer = KernelQuantizer(*args, **kwargs)
    layer.build(KERNEL.shape)
    layer.fit_steps(KERNEL)
    return layer


@pytest.mark.parametrize("method", sorted(KERNEL_QUANTIZERS))
def test_branches_are_weighed_by_their_probabilities(method):
    layer = built((2, 3, 8), method)
    terms = [layer.codes(KERNEL, i) * layer.step(KERNEL, i) for i in range(3)]
    expected = 0.2 * terms[0] + 0.5 * terms[1] + 0.3 * terms[2]
    y = layer(KERNEL, probabilities=tf.constant([0.2, 0.5, 0.3]))
    np.testing.assert_allclose(y, expected, atol=1e-5)


def test_gradient_of_the_probabilities_is_each_quantized_kernel():
    layer = built((2, 4))
    p = tf.constant([0.4, 0.6])
    with tf.GradientTape() as tape:
        tape.watch(p)
        loss = tf.reduce_sum(layer(KERNEL, probabilities=p) * KERNEL)
    terms = [layer.codes(KERNEL, i) * layer.step(KERNEL, i) for i in range(2)]
    np.testing.assert_allclose(
        tape.gradient(loss, p), [(t * KERNEL).sum() for t in terms], rtol=1e-4
    )


def test_step_gradient_is_scaled_as_in_lsq():
    layer = built(3)
    layer.log2_step.assign(np.full(layer.log2_step.shape, -1.5))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(KERNEL) * KERNEL)
    slope = tape.gradient(loss, layer.log2_step.value)
    step = 2.0**-1.5
    v = KERNEL.astype("float64") / step
    ds = np.where(np.abs(v) >= 3, 3 * np.sign(v), np.round(v) - v)
    expected = (ds * KERNEL).sum((0, 1, 2)) * step * np.log(2) / np.sqrt(3 * 36)
    np.testing.assert_allclose(np.ravel(slope), expected, rtol=1e-4, atol=1e-5)


def test_disabled_is_float():
    layer = built(2)
    layer.enabled = False
    np.testing.assert_array_equal(layer(KERNEL), KERNEL)


@pytest.mark.parametrize("method", sorted(KERNEL_QUANTIZERS))
def test_zero_channel_stays_zero(method):
    kernel = KERNEL * np.array([1, 0, 1, 1, 1], "float32")
    layer = built(4, method)
    layer.fit_steps(kernel)
    y = layer(kernel).numpy()
    assert np.isfinite(y).all()
    np.testing.assert_array_equal(y[..., 1], 0.0)


def test_steps_fit_a_kernel_with_an_outlier():
    kernel = KERNEL.copy()
    kernel[0, 0, 0] = 30
    layer = built(4)
    layer.fit_steps(kernel)
    limit, steps = 7, np.geomspace(0.01, 5, 4000)
    for channel in range(5):
        w = kernel[..., channel]
        errors = [
            np.square(np.round(np.clip(w / s, -limit, limit)) * s - w).sum()
            for s in steps
        ]
        error = np.square(layer(kernel).numpy()[..., channel] - w).sum()
        assert error <= 1.03 * min(errors)


def test_configuration_round_trip():
    layer = KernelQuantizer((2, 4), "max_abs", (0, 1), name="q")
    again = KernelQuantizer.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()


def test_refuses_what_it_cannot_do():
    with pytest.raises(PolicyError, match="Received: bits=1"):
        KernelQuantizer(1)
    with pytest.raises(ValueError, match="Did you mean 'max_abs'"):
        KernelQuantizer(4, "maxabs")


def test_memory_does_not_grow_with_the_branches():
    kept = {}
    for bits in ((2, 3), (2, 3, 4, 5, 6, 7, 8)):
        layer = built(bits)
        weights = tf.fill([len(bits)], 1 / len(bits))
        call = lambda kernel, p, layer=layer: layer(kernel, probabilities=p)  # noqa: E731
        kept[len(bits)] = kept_for_backward(call, (tf.constant(KERNEL), weights))
    assert kept[7] < 2 * KERNEL.nbytes
    assert kept[7] - kept[2] < 0.5 * KERNEL.nbytes


def test_axes_that_share_a_step_come_first():
    with pytest.raises(ValueError, match="Received: shared_axes=\\(1, 2\\)"):
        KernelQuantizer(4, shared_axes=(1, 2))
