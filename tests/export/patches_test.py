import keras
import numpy as np
import pytest
import tensorflow as tf

from gmpq_tf.export.latency.pieces import File
from gmpq_tf.export.tflite import convolutions
from gmpq_tf.export.tflite.arguments import STORAGES
from gmpq_tf.export.tflite.lowering import lower
from gmpq_tf.export.tflite.patches import same_padding
from gmpq_tf.export.tflite.runtime import TFLiteModel
from gmpq_tf.transform import snap_biases
from tests.export.nets import images, student_of


@pytest.mark.parametrize("size", range(1, 12))
@pytest.mark.parametrize(
    ("window", "stride", "dilation"),
    [(3, 1, 1), (3, 2, 1), (4, 3, 1), (3, 1, 2), (1, 2, 1)],
)
def test_padding_is_that_of_tensorflow(size, window, stride, dilation):
    """The first window's first pixel, seen from a convolution of ones and a ramp."""
    output = -(-size // stride)
    before, after = same_padding(size, output, window, stride, dilation)
    x = np.arange(1.0, size + 1).reshape(1, size, 1)
    kernel = np.random.default_rng(0).normal(size=(window, 1, 1))
    want = tf.nn.conv1d(x, kernel, stride, "SAME", dilations=dilation).numpy()
    padded = np.pad(x, [(0, 0), (before, after), (0, 0)])
    have = tf.nn.conv1d(padded, kernel, stride, "VALID", dilations=dilation).numpy()
    np.testing.assert_allclose(want, have, atol=1e-9)


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(
    ("size", "strides", "dilation"),
    [
        ((3, 3), 1, 1),
        ((3, 3), 2, 1),
        ((2, 4), (1, 1), 1),
        ((5, 1), 1, 1),
        ((1, 3), (2, 2), 1),
        ((3, 3), 1, 2),
        ((1, 1), 2, 1),
    ],
)
def test_patches_and_a_dense_layer_are_the_convolution(
    padding, size, strides, dilation, monkeypatch
):
    monkeypatch.setattr(convolutions, "PATCHES_BYTES", 0)  # however small the kernel
    inputs = keras.Input((9, 10, 16), name="image")
    layer = keras.layers.Conv2D(
        96,
        size,
        strides=strides,
        dilation_rate=dilation,
        padding=padding,
        activation="relu",
        name="c",
    )
    model = keras.Model(inputs, layer(inputs))
    x = images(model, 4)
    student = student_of(model, 4, 4, pinned={}, x=x)
    snap_biases(student)
    files = {s: lower(student, s) for s in STORAGES}
    outputs = {s: TFLiteModel(f.content).predict(x) for s, f in files.items()}
    for storage in ("packed", "smallest"):  # the second pads with fewer operators
        assert {kernel.kind for kernel in files[storage].kernels} == {"Dense"}
        np.testing.assert_array_equal(outputs[storage], outputs["fast"])
    assert len(files["smallest"].content) <= len(files["packed"].content)
    padded = File(files["packed"].content)
    shapes = [
        len(padded.tensors[operator.outputs[0]].shape)
        for number, operator in enumerate(padded.operators)
        if padded.code(number) == "PAD"
    ]
    pads_columns = padding == "same" and size[1] * dilation > 1
    assert shapes == (
        [3] if pads_columns else [4] if padding == "same" and size[0] > 1 else []
    )
