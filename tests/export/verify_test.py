import keras
import numpy as np
import pytest

from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.integers.grids import Grid, Value
from gmpq_tf.export.tflite.integer_graph import Check
from gmpq_tf.export.tflite.verify import (
    Deviation,
    TFLiteModel,
    deviation_of,
)
from tests.export.flatbuffer_test import quantize_file


def test_compare_counts_codes_off_and_far():
    grid = Grid(0.5, 0, 15)
    check = Check("a", "Conv2D", 0, Value(0, grid, 112))
    value = np.array([0.0, 0.5, 1.0, 99.0], "float32")
    stored = np.array([112, 114, 117, 127], "int8")
    deviation = deviation_of(check, value, stored)
    assert (deviation.off, deviation.far) == (0.5, 0.25)
    assert deviation.excessive


def test_slack_excuses_roundings():
    assert not Deviation("a", "Conv2D", 0.04, 0.0, 0.0).excessive
    assert Deviation("a", "Conv2D", 0.2, 0.0, 0.0).excessive
    assert not Deviation("a", "Conv2D", 0.2, 0.0, 0.1).excessive


def test_wrong_shapes_and_files_are_refused(tmp_path):
    model = TFLiteModel(quantize_file())
    with pytest.raises(ExportError, match=r"\('images', 4\).*\(2, 3\)"):
        model.predict(np.zeros((2, 3), "float32"))
    with pytest.raises(ExportError, match="at least one input"):
        model.predict(np.zeros((0, 4), "float32"))
    with pytest.raises(ExportError, match="must be readable"):
        TFLiteModel(tmp_path / "missing.tflite")
    with pytest.raises(ExportError, match="must be a TFLite model"):
        TFLiteModel(b"rubbish, not a model")


def test_a_converted_keras_model_runs():
    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.layers.Dense(2)(inputs))
    import tensorflow as tf

    content = tf.lite.TFLiteConverter.from_keras_model(model).convert()
    x = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")
    received = TFLiteModel(content).predict(x, batch_size=2)
    np.testing.assert_allclose(received, model(x), rtol=1e-5, atol=1e-6)
