import keras
import pytest

from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.tflite.lowering import lower
from tests.export.nets import student_of

L = keras.layers


def test_layer_without_integer_counterpart_is_named():
    inputs = keras.Input((8, 8, 3))
    x = L.Conv2D(4, 3, name="a")(inputs)
    x = L.Activation("gelu", name="curve")(x)
    model = keras.Model(inputs, L.Dense(3, name="b")(L.Flatten()(x)))
    student = student_of(model, 8, 8)
    with pytest.raises(ExportError, match=r"'curve' of kind Activation.*'gelu'"):
        lower(student)


def test_all_such_layers_are_named_at_once():
    inputs = keras.Input((8, 8, 3))
    x = L.Conv2D(4, 3, activation="gelu", name="a")(inputs)
    x = L.ELU(name="elu")(x)
    x = L.EinsumDense("bhwi,io->bhwo", (6, 6, 4), name="up")(x)
    model = keras.Model(inputs, L.Dense(3, name="b")(L.Flatten()(x)))
    with pytest.warns(UserWarning, match=r"stay float: up"):
        student = student_of(model, 8, 8)
    with pytest.raises(ExportError) as error:
        lower(student)
    for name in ("'a_activation' of kind Activation", "'up' of", "'elu' of kind ELU"):
        assert name in str(error.value)
