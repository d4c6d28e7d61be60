import os

os.environ.setdefault("GMPQ_XLA_QUANTIZERS", "0")  # small tensors: compiling costs more

import keras
import numpy as np
import pytest

from gmpq_tf.export.tflite.lowering import lower
from gmpq_tf.export.tflite.verify import local_deviations
from tests.export.nets import images, student_of

L = keras.layers


@pytest.mark.parametrize("activation", ["relu", "linear"])
@pytest.mark.parametrize("size", [2, 3, (2, 3), (4, 2)])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_averages_round_as_those_of_keras(padding, size, activation):
    """A quarter of the averages of four codes are halves, which go upwards."""
    inputs = keras.Input((7, 9, 3), name="image")
    x = L.Conv2D(4, 1, activation=activation, name="a")(inputs)
    x = L.AveragePooling2D(size, 1, padding, name="average")(x)
    student = student_of(keras.Model(inputs, L.Flatten()(x)), 8, 8)
    x = images(student, seed=2)
    deviations = {d.name: d for d in local_deviations(lower(student, "fast"), [x])}
    assert deviations["average"].off == 0
    assert deviations["average"].slack < 0.02


def test_padding_is_left_out_of_averages():
    """A constant image stays constant up to its border."""
    inputs = keras.Input((5, 6, 2), name="image")
    x = L.Conv2D(2, 1, kernel_initializer="ones", activation="relu", name="a")(inputs)
    x = L.AveragePooling2D(3, 1, "same", name="average")(x)
    student = student_of(keras.Model(inputs, L.Flatten()(x)), 8, 8)
    x = np.ones((2, 5, 6, 2), "float32")
    lowered = lower(student, "fast")
    assert all(d.off == 0 for d in local_deviations(lowered, [x]))
    assert np.ptp(np.asarray(student(x, training=False))) == 0
