import keras
import numpy as np
import pytest

from gmpq_tf.export.integers.layouts import keras_layout, stored_layout
from gmpq_tf.export.tflite.flatbuffer import read_model, tensor_type
from gmpq_tf.export.tflite.lowering import lower
from gmpq_tf.export.tflite.verify import local_deviations
from gmpq_tf.transform import snap_biases
from tests.export.nets import student_of

L = keras.layers


@pytest.mark.parametrize(
    ("layer", "stored"),
    [
        (L.Conv2D(5, (3, 2)), (5, 3, 2, 4)),
        (L.DepthwiseConv2D((3, 2), depth_multiplier=5), (1, 3, 2, 20)),
        (L.Dense(5), (5, 4)),
    ],
)
def test_layouts_round_trip(layer, stored):
    layer.build((None, 8, 8, 4))
    kind, kernel = type(layer).__name__, np.asarray(layer.kernel)
    moved, axis = stored_layout(kind, kernel)
    assert moved.shape == stored
    assert axis == (3 if kind == "DepthwiseConv2D" else 0)
    np.testing.assert_array_equal(keras_layout(kind, moved, kernel.shape), kernel)


@pytest.mark.parametrize("storage", ["packed", "smallest"])
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("inputs", [6, 7, 8, 9, 10, 12, 27, 36])
def test_rows_of_any_length_are_computed_exactly(inputs, bits, storage):
    """XNNPACK leaves rows that do not fill their bytes to kernels that round twice."""
    image = keras.Input((inputs,), name="image")
    model = keras.Model(image, L.Dense(64, name="d")(image))
    x = np.random.default_rng(0).normal(size=(64, inputs)).astype("float32")
    student = student_of(model, bits, 8, pinned={}, x=x)
    snap_biases(student)
    lowered = lower(student, storage)
    narrowest = 4 if bits == 2 and storage == "smallest" else 2  # codes a byte
    wanted = next(
        kind
        for kind, codes in (("INT2", 4), ("INT4", 2), ("INT8", 1))
        if codes <= narrowest and inputs % codes == 0
    )
    read = read_model(lowered.content)
    assert tensor_type(read, lowered.kernels[0].tensor) == wanted
    dense = [d for d in local_deviations(lowered, [x]) if d.kind == "Dense"]
    assert [d.off for d in dense] == [0.0]
