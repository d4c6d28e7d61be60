import keras
import numpy as np

import gmpq_tf as gmpq
from gmpq_tf.graph import layer_kind
from gmpq_tf.layers import UnitQuantizer
from gmpq_tf.transform.calibrate import input_quantizers

X = np.linspace(0, 1, 257, dtype="float32")[:, None]


def model():
    inputs = keras.Input((1,))
    return keras.Model(inputs, UnitQuantizer(name="unit")(inputs))


def test_codes_are_256ths_whatever_calibration_saw():
    student = model()
    gmpq.calibrate(student, [(X / 100,)])
    expected = np.minimum(np.arange(257), 255) / 256
    np.testing.assert_array_equal(student(X)[:, 0], expected.astype("float32"))
    assert not student.trainable_variables


def test_is_a_quantizer_on_a_tensor():
    student = model()
    (unit,) = input_quantizers(student)
    assert layer_kind(unit) == "InputQuantizer"


def test_saved_and_loaded(tmp_path):
    student = model()
    gmpq.calibrate(student, [(X,)])
    student.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    assert type(again.get_layer("unit")) is UnitQuantizer
    np.testing.assert_array_equal(again(X), student(X))
