import numpy as np
import pytest
import tensorflow as tf

from gmpq_tf.policy import PolicyError
from gmpq_tf.quantizers import KERNEL_QUANTIZERS, KernelQuantizer
from gmpq_tf.quantizers.observing import observing
from tests.quantizers.memory import kept_for_backward

KERNEL = np.random.default_rng(0).normal(size=(3, 3, 4, 5)).astype("float32")


def built(*args, **kwargs):
    layer = KernelQuantizer(*args, **kwargs)
    layer.build(KERNEL.shape)
    layer.fit_steps(KERNEL)
    return layer


@pytest.mark.parametrize("method", sorted(KERNEL_QUANTIZERS))
def test_branches_are_weighed_by_their_probabilities(method):
    layer = built((2, 3, {"apot": 6, "alq": 7}.get(method, 8)), method)
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


def test_float_while_observing_and_quantized_again_afterwards():
    layer = built(2)
    with observing({}):
        np.testing.assert_array_equal(layer(KERNEL), KERNEL)
    assert len(np.unique(layer(KERNEL))) <= 3 * KERNEL.shape[-1]


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


@pytest.mark.quick_rows(11)
@pytest.mark.parametrize("method", sorted(KERNEL_QUANTIZERS))
@pytest.mark.parametrize("last", [(0, 1, 3), (1, 2), (0,), (1, 2, 3), (3,)])
def test_any_axes_share_a_step(method, last):
    """As with these axes first, which the other tests know; gradients too."""
    order = [*last, *(i for i in range(4) if i not in last)]
    moved = KERNEL.transpose(order)

    def values_and_slopes(kernel, axes):
        layer = KernelQuantizer((2, 4), method, axes)
        layer.build(kernel.shape)
        layer.fit_steps(kernel)
        x = tf.constant(kernel)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, probabilities=tf.constant([0.3, 0.7]))
            loss = tf.reduce_sum(y * y)
        watched = [x, *(v.value for v in layer.trainable_variables)]
        return y, layer.codes(kernel, 1), *tape.gradient(loss, watched)

    found = values_and_slopes(KERNEL, last)
    expected = values_and_slopes(moved, tuple(range(len(last))))
    for value, wanted in zip(found[:3], expected[:3], strict=True):
        np.testing.assert_array_equal(np.transpose(value, order), wanted)
    for slope, wanted in zip(found[3:], expected[3:], strict=True):
        slope = np.transpose(slope, [0, *(i + 1 for i in order)])
        np.testing.assert_allclose(slope, wanted, rtol=1e-6)


@pytest.mark.parametrize("axes", [(1, 0), (0, 0), (-1,)])
def test_axes_are_ascending_axes_of_the_kernel(axes):
    with pytest.raises(ValueError, match=r"Received: shared_axes=\("):
        KernelQuantizer(4, shared_axes=axes)


def test_axes_the_kernel_lacks_are_refused():
    with pytest.raises(ValueError, match=r"axes 0 to 3. Received: shared_axes=\(0, 4"):
        KernelQuantizer(4, shared_axes=(0, 4)).build(KERNEL.shape)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("log2", [-1e30, -300.0, -140.0, 128.0, 200.0, 1e30])
def test_steps_astray_leave_values_and_gradients_finite(log2, dtype):
    layer = KernelQuantizer((2, 8), dtype=dtype)
    layer.build(KERNEL.shape)
    layer.log2_step.assign(np.full(layer.log2_step.shape, log2))
    kernel, p = tf.cast(KERNEL, dtype), tf.constant([0.5, 0.5])
    with tf.GradientTape() as tape:
        tape.watch([kernel, p])
        total = tf.reduce_sum(tf.cast(layer(kernel, probabilities=p), "float32"))
    for slope in tape.gradient(total, [kernel, p, layer.log2_step.value]):
        assert np.isfinite(tf.cast(slope, "float32")).all()
    assert np.isfinite(float(total))
    assert layer.step(kernel)[0, 0, 0, 0] == pytest.approx(
        2.0 ** np.clip(log2, -50, 50), rel=1e-4
    )


@pytest.mark.parametrize("method", sorted(KERNEL_QUANTIZERS))
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_zero_kernel_stays_zero_with_the_gradient_of_the_identity(dtype, method):
    layer = KernelQuantizer(4, method, dtype=dtype)
    layer.build(KERNEL.shape)
    kernel = tf.zeros(KERNEL.shape, dtype)
    layer.fit_steps(kernel)
    with tf.GradientTape() as tape:
        tape.watch(kernel)
        y = layer(kernel)
    np.testing.assert_array_equal(y, 0.0)
    np.testing.assert_array_equal(tape.gradient(y, kernel), np.ones(KERNEL.shape))
    if method == "lsq":
        np.testing.assert_allclose(layer.step(kernel), 2.0**-4)


def test_zero_channel_gets_the_step_of_the_largest_weight():
    """A step next to nothing would clip whatever training makes of the channel."""
    kernel = KERNEL * np.array([1, 0, 1, 1e-12, 1], "float32")
    layer = built((2, 4))
    layer.fit_steps(kernel)
    for branch, limit in enumerate((1, 7)):
        steps = layer.step(kernel, branch).ravel()
        expected = np.abs(kernel).max() / limit
        np.testing.assert_allclose(steps[[1, 3]], expected, rtol=1e-5)
        assert (steps[[0, 2, 4]] <= expected * (1 + 1e-6)).all()


@pytest.mark.parametrize("method", sorted(KERNEL_QUANTIZERS))
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_kernels_that_are_not_finite_are_refused_by_name(value, method):
    kernel = KERNEL.copy()
    kernel[0, 1, 2, 3] = value
    layer = KernelQuantizer(4, method, name="of_conv7")
    layer.build(kernel.shape)
    with pytest.raises(ValueError, match=r"Received: 1 weights.*of_conv7"):
        layer.fit_steps(kernel)
