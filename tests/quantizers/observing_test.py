import threading

import numpy as np
import pytest

from gmpq_tf.layers import QUANT_LAYERS
from gmpq_tf.quantizers import InputQuantizer, KernelQuantizer
from gmpq_tf.quantizers.observing import observing

X = np.linspace(0.05, 0.93, 12, dtype="float32").reshape(4, 3)


def dense():
    layer = QUANT_LAYERS["Dense"](
        2,
        input_quantizer=InputQuantizer(2),
        kernel_quantizer=KernelQuantizer(2, shared_axes=(0, 1)),
    )
    layer.build(X.shape)
    return layer


def test_a_layer_is_float_inside_and_quantized_again_after_an_error():
    layer, seen = dense(), []
    quantized = np.array(layer(X))
    with (
        pytest.raises(ZeroDivisionError),
        observing({layer.input_quantizer: seen.append}),
    ):
        np.testing.assert_allclose(layer(X), X @ layer.kernel.numpy(), rtol=1e-6)
        raise ZeroDivisionError
    np.testing.assert_array_equal(seen, [X])
    np.testing.assert_array_equal(layer(X), quantized)


def test_blocks_nest():
    layer, outer, inner = dense(), [], []
    with observing({layer.input_quantizer: outer.append}):
        with observing({layer.input_quantizer: inner.append}):
            layer(X)
        layer(2 * X)
    np.testing.assert_array_equal(inner, [X])
    np.testing.assert_array_equal(outer, [2 * X])


def test_other_threads_go_on_quantizing():
    layer, found = dense(), []
    quantized = np.array(layer(X))
    with observing({}):
        thread = threading.Thread(target=lambda: found.append(np.array(layer(X))))
        thread.start()
        thread.join()
        assert not np.array_equal(layer(X), quantized)
    np.testing.assert_array_equal(found, [quantized])
