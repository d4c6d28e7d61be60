"""Products, gates and scaling, each compared with Keras given equal inputs."""

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from keras import ops

import gmpq_tf as gmpq
from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.tflite.exporter import export_tflite
from gmpq_tf.export.tflite.flatbuffer import read_model
from gmpq_tf.export.tflite.lowering import lower
from gmpq_tf.export.tflite.verify import local_deviations
from gmpq_tf.quantizers import InputQuantizer
from tests.export.nets import images, student_of
from tests.transform.models import batch_of, gates, preactivation, separable_layer

L = keras.layers


def deviations(student, x=None):
    x = images(student, seed=3) if x is None else x
    return {d.name: d for d in local_deviations(lower(student), [x])}


def operators(student):
    """Names of a file's operators, in order."""
    names = {v: k for k, v in vars(schema.BuiltinOperator).items()}
    model = read_model(lower(student).content)
    codes = [c.builtinCode for c in model.operatorCodes]
    return [names[codes[o.opcodeIndex]] for o in model.subgraphs[0].operators]


def net(function, channels=6):
    """A convolution, what is tested, and a dense layer."""
    inputs = keras.Input((6, 7, 3), name="image")
    x = L.Conv2D(channels, 3, name="a")(inputs)
    x = L.BatchNormalization(name="norm")(x)
    return keras.Model(inputs, L.Dense(4, name="b")(L.Flatten()(function(x))))


@pytest.mark.parametrize("kind", ["silu", "hard_silu", "sigmoid", "hard_sigmoid"])
@pytest.mark.parametrize("bits", [3, 8])
def test_activations_are_those_of_keras(kind, bits):
    student = student_of(net(L.Activation(kind, name="curve")), 8, bits, pinned={})
    found = deviations(student)
    names = [n for n in ("curve", "curve_gate") if n in found]
    assert names
    assert max(found[n].off for n in names) < 0.002
    assert max(found[n].far for n in names) == 0


@pytest.mark.parametrize("size", [0.01, 0.1, 1.0, 10.0])
def test_hard_sigmoid_rounds_halves_as_keras_does(size):
    """With steps of 2^-8 and less, up to a twelfth of its values are halves."""
    model = net(L.Activation("hard_sigmoid", name="curve"))
    norm = model.get_layer("norm")
    norm.gamma.assign(norm.gamma * size)
    student = student_of(model, 8, 8)
    assert deviations(student)["curve"].off < 0.002


def test_a_sigmoid_is_one_lookup_and_a_swish_one_product_more():
    student = student_of(net(L.Activation("silu")), 8, 8)
    found = operators(student)
    assert found.count("LOGISTIC") == found.count("MUL") == 1
    assert not {"DEQUANTIZE", "HARD_SWISH", "TANH"} & set(found[:-1])


SCALES = {
    "add": lambda x: x + 0.7,
    "add channels": lambda x: x + np.linspace(-1, 1, 6, dtype="float32"),
    "subtract": lambda x: x - 0.7,
    "subtract from": lambda x: 0.7 - x,
    "multiply": lambda x: x * -1.7,
    "divide": lambda x: x / 3.0,
    "divide by channels": lambda x: x / np.linspace(1, 2, 6, dtype="float32"),
    "rescale": L.Rescaling(0.3, offset=-0.2),
    "normalize": L.Normalization(mean=[0.1] * 6, variance=[0.5] * 6),
    "denormalize": L.Normalization(mean=[0.1] * 6, variance=[0.5] * 6, invert=True),
    "on vectors": lambda x: L.GlobalAveragePooling2D()(x) * 2.0 + 1.0,
}


@pytest.mark.parametrize("case", sorted(SCALES))
def test_scaling_by_constants_is_that_of_keras(case):
    student = student_of(net(SCALES[case]), 8, 8)
    found = deviations(student)
    assert max(d.off for d in found.values()) < 0.03
    assert not any(d.far for d in found.values())


def test_scaling_that_differs_between_pixels_is_refused():
    image = np.arange(4 * 5 * 6, dtype="float32").reshape(4, 5, 6)
    student = student_of(net(lambda x: x + image), 8, 8)
    with pytest.raises(ExportError, match="use one a channel"):
        lower(student)


def test_products_broadcast():
    def squeeze_excite(x):
        y = L.GlobalAveragePooling2D(keepdims=True)(x)
        return L.Multiply(name="product")([x, L.Activation("sigmoid")(y)])

    student = student_of(net(squeeze_excite), 8, 8)
    assert deviations(student)["product"].off < 0.01


def test_three_factors_are_refused():
    student = student_of(net(lambda x: L.Multiply(name="cube")([x, x, x])), 8, 8)
    with pytest.raises(ExportError, match=r"'cube' of 3 tensors, write it as"):
        lower(student)


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize("build", [gates, preactivation, separable_layer])
@pytest.mark.parametrize("bits", [4, 8])
def test_whole_networks_export(build, bits, tmp_path):
    model = build()
    x = batch_of(model, 64)
    student = student_of(model, bits, bits, x)
    gmpq.snap_biases(student)
    path = tmp_path / "m.tflite"
    report = export_tflite(student, path, verify_data=batch_of(model, 32, seed=1))
    assert report.agreement >= 0.95
    assert report.mean_steps < 1


def test_relu_is_computed_with_the_normalization_before_it():
    student = student_of(preactivation(), 8, 8, batch_of(preactivation()))
    found = operators(student)
    assert "RELU" not in found
    assert found.count("DEPTHWISE_CONV_2D") == 2


def test_snapped_normalization_is_exact():
    """Its offset is then a whole number of what the accumulator counts in."""
    inputs = keras.Input((6, 7, 3), name="image")
    x = L.Conv2D(6, 3, name="a")(inputs)
    x = L.MaxPooling2D(2)(L.Add()([x, x]))
    norm = L.BatchNormalization(name="alone")
    model = keras.Model(inputs, L.Dense(4, name="b")(L.Flatten()(L.ReLU()(norm(x)))))
    random = np.random.default_rng(0)
    for weight in norm.weights:
        weight.assign(random.uniform(0.3, 2.0, weight.shape))
    student = student_of(model, 8, 8)
    before = np.array(student.get_layer("alone").moving_mean)
    gmpq.snap_biases(student)
    moved = np.abs(np.asarray(student.get_layer("alone").moving_mean) - before)
    assert 0 < moved.max() < 0.01
    assert deviations(student)["alone"].off == 0


def test_sigmoid_on_another_grid_is_refused():
    """As in a model that an older version quantized."""
    inputs = keras.Input((3,), name="x")
    x = InputQuantizer(8, None, name="q0")(inputs)
    x = InputQuantizer(8, False, name="q1")(ops.sigmoid(x))
    x = InputQuantizer(8, False, name="q2")(L.ReLU()(x))
    student = keras.Model(inputs, x)
    gmpq.calibrate(student, [(np.random.default_rng(0).normal(size=(9, 3)),)])
    with pytest.raises(ExportError, match="grid of 1/256"):
        lower(student)


@pytest.mark.parametrize("output_type", ["float32", "int8"])
def test_a_sigmoid_may_be_an_output_and_be_read(output_type, tmp_path):
    inputs = keras.Input((6,), name="x")
    gate = L.Dense(5, activation="sigmoid", name="gate")(inputs)
    model = keras.Model(inputs, [gate, L.Dense(3, name="scores")(gate)])
    student = student_of(model, 8, 8)
    path = tmp_path / "m.tflite"
    report = export_tflite(
        student, path, verify_data=images(student), output_type=output_type
    )
    assert report.agreement == 1
    assert report.max_steps < 0.1
