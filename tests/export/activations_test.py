"""What stands between layers in files: caps of ReLU, augmentation, other inputs."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.tflite.exporter import export_tflite
from gmpq_tf.export.tflite.lowering import lower
from gmpq_tf.export.tflite.runtime import TFLiteModel
from tests.export.nets import student_of

X = np.random.default_rng(0).uniform(-1, 2, (16, 8, 8, 3)).astype("float32")


def exported(model, tmp_path, x=X, bits=8, **options):
    """Student and outputs of its file, which every layer was checked in."""
    student = student_of(model, bits, bits, x)
    path = tmp_path / "m.tflite"
    export_tflite(student, path, verify_data=x, latency_runs=0, **options)
    return student, TFLiteModel(path.read_bytes()).predict([np.float32(x)])


def head(x):
    return layers.Dense(3)(layers.GlobalAveragePooling2D()(x))


def in_a_layer(x, cap):
    return layers.Conv2D(4, 3, activation=layers.ReLU(cap))(x)


def after_a_layer(x, cap):
    x = layers.BatchNormalization()(layers.Conv2D(4, 3)(x))
    return layers.Conv2D(4, 3)(layers.ReLU(cap)(x))


def after_a_sum(x, cap):
    x = layers.Add()([layers.Conv2D(4, 1)(x), layers.Conv2D(4, 1)(x)])
    return keras.activations.relu(x, max_value=cap)


def alone(x, cap):
    x = layers.Concatenate()([x, layers.Conv2D(4, 1)(x)])
    return layers.Conv2D(4, 1)(layers.ReLU(cap)(x))


def after_a_normalization(x, cap):
    x = layers.Add()([x, layers.Conv2D(3, 1)(x)])
    return layers.Activation(layers.ReLU(cap))(layers.BatchNormalization()(x))


@pytest.mark.quick_rows(4)
@pytest.mark.parametrize("cap", [1.0, 0.37, 6.0])
@pytest.mark.parametrize(
    "place", [in_a_layer, after_a_layer, after_a_sum, alone, after_a_normalization]
)
def test_capped_relus_are_exact(place, cap, tmp_path):
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, head(place(inputs, cap)))
    for weight in model.weights:  # so that values reach the cap
        if "kernel" in weight.path:
            weight.assign(weight.value * 3)
    student, found = exported(model, tmp_path)
    expected = np.asarray(student(X))
    step = student.layers[-1].step()
    assert np.abs(found - expected).max() <= 1.01 * step
    assert np.mean(np.abs(found - expected) > 0.5 * step) < 0.1


def test_a_cap_below_the_range_of_its_grid_is_kept(tmp_path):
    """The quantizer's range reaches beyond the cap, which must hold all the same."""
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 1, activation=layers.ReLU(1.0), name="a")(inputs)
    model = keras.Model(inputs, layers.Conv2D(4, 1, name="b")(x))
    student = student_of(model, 8, 8, X)
    student.get_layer("b").input_quantizer.set_branch(0, 0.03)
    path = tmp_path / "m.tflite"
    report = export_tflite(student, path, verify_data=X, latency_runs=0)
    found = TFLiteModel(path.read_bytes()).predict([X])
    expected = np.asarray(student(X))
    assert np.asarray(model.get_layer("a")(X)).max() == 1.0
    assert report.max_steps <= 1.01
    np.testing.assert_allclose(found, expected, atol=1.01 * student.layers[-1].step())


ACTIVATIONS = {
    "ReLU layer": layers.ReLU(),
    "ReLU6 layer": layers.ReLU(6.0),
    "tf.nn.relu6": tf.nn.relu6,
    "keras.ops.relu": ops.relu,
    "tf.nn.silu": tf.nn.silu,
    "Activation layer": layers.Activation("hard_silu"),
}


@pytest.mark.quick_rows(3)
@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activations_export_however_they_are_written(name, tmp_path):
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, activation=ACTIVATIONS[name])(inputs)
    student, found = exported(keras.Model(inputs, head(x)), tmp_path)
    expected, step = np.asarray(student(X)), student.layers[-1].step()
    assert np.abs(found - expected).max() <= 1.01 * step


def test_a_softmax_layer_given_as_activation_ends_a_model(tmp_path):
    inputs = keras.Input((8, 8, 3))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, activation="relu")(inputs))
    outputs = layers.Dense(3, activation=layers.Softmax())(x)
    student, found = exported(keras.Model(inputs, outputs), tmp_path)
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-5)
    np.testing.assert_allclose(found, student(X), atol=0.02)


@pytest.mark.parametrize("end", [layers.Softmax(1), layers.Softmax((1, 2)), "op"])
def test_a_softmax_along_another_axis_is_no_end(end):
    """TFLite's is along the last axis; another is refused, or computed in float."""
    image = keras.Input((5, 4, 3), name="image")
    x = layers.Conv2D(3, 1, name="conv")(image)
    x = ops.softmax(x, axis=2) if end == "op" else end(x)
    with pytest.warns(UserWarning, match=r"along axis .*, which must be the last"):
        student = student_of(keras.Model(image, x), 8, 8)
    with pytest.raises(ExportError, match=r"along axis .*, which must be the last"):
        lower(student)
    images = np.random.default_rng(0).normal(size=(4, 5, 4, 3)).astype("float32")
    content = lower(student, float_layers="allow").content
    found = TFLiteModel(content).predict(images)
    step = student.layers[-1].step()
    np.testing.assert_allclose(found, student(images), atol=1.01 * step)


def test_augmentation_is_not_in_the_file(tmp_path):
    inputs = keras.Input((8, 8, 3))
    augment = [layers.RandomFlip(), layers.RandomRotation(0.2), layers.RandomZoom(0.2)]
    x = keras.Sequential(augment)(inputs)
    x = layers.Conv2D(4, 3, activation="relu")(layers.Rescaling(0.5)(x))
    x = layers.GaussianNoise(0.2)(layers.AlphaDropout(0.3)(x))
    student, found = exported(keras.Model(inputs, head(x)), tmp_path)
    expected = np.asarray(student(X, training=False))
    assert np.abs(found - expected).max() <= 1.01 * student.layers[-1].step()


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float64"])
def test_bytes_go_into_the_file_as_they_are(dtype, tmp_path):
    pixels = np.random.default_rng(2).integers(0, 256, (16, 8, 8, 3)).astype(dtype)
    pixels.ravel()[:2] = 0, 255
    inputs = keras.Input((8, 8, 3), dtype=dtype)
    x = layers.Conv2D(4, 3, activation="relu")(layers.Rescaling(1 / 255)(inputs))
    model = keras.Model(inputs, head(x))
    student, _ = exported(model, tmp_path, pixels)
    _, found = exported(model, tmp_path, pixels, input_type="uint8")
    expected = np.asarray(student(pixels))
    step = student.layers[-1].step()
    assert np.abs(found - expected).max() <= 1.01 * step
    from ai_edge_litert.interpreter import Interpreter

    runtime = Interpreter(model_path=str(tmp_path / "m.tflite"))
    runtime.allocate_tensors()
    (inward,), (outward,) = runtime.get_input_details(), runtime.get_output_details()
    runtime.set_tensor(inward["index"], pixels[:1].astype("uint8"))
    runtime.invoke()
    raw = runtime.get_tensor(outward["index"])
    assert np.abs(raw - expected[:1]).max() <= 1.01 * step
