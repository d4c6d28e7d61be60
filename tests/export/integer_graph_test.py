"""Sizes and steps of the integer graph: fixed batches, and what kernels can hold."""

import keras
import numpy as np
import pytest

from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.tflite.lowering import lower
from gmpq_tf.export.tflite.runtime import TFLiteModel
from gmpq_tf.transform import snap_biases
from tests.export.nets import NETS, L, student_of
from tests.export.nets import images as images_of

KERNELS = ("xnnpack", "builtin", "reference")


def open_sizes(content):
    details = TFLiteModel(content, use_xnnpack=False).interpreter.get_tensor_details()
    return sum(-1 in d["shape_signature"].tolist() for d in details)


@pytest.mark.quick_rows(4)
@pytest.mark.parametrize("storage", ["fast", "smallest"])
@pytest.mark.parametrize("net", NETS)
def test_a_fixed_batch_is_written_everywhere_and_changes_no_output(net, storage):
    student = student_of(NETS[net](), 2, 4)
    x = images_of(student, 5)
    arrays = x if isinstance(x, list) else [x]
    free = TFLiteModel(lower(student, storage).content, use_xnnpack=False)
    for batch in (1, 2):
        content = lower(student, storage, batch=batch).content
        fixed = TFLiteModel(content, use_xnnpack=False)
        assert open_sizes(content) == 0
        assert [d["shape"][0] for d in fixed.inputs + fixed.outputs] == [batch] * len(
            fixed.inputs + fixed.outputs
        )
        for want, have in zip(free.stored(arrays), fixed.stored(arrays), strict=True):
            np.testing.assert_allclose(have, want, atol=1e-6)


def fixed_model(batch):
    inputs = keras.Input(batch_shape=(batch, 8, 8, 3))
    x = L.Conv2D(4, 3, activation="relu", name="a")(inputs)
    x = L.Dense(3, name="scores")(L.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, x)


@pytest.mark.parametrize(("batch", "wanted"), [(None, None), (1, 1), (4, 4)])
def test_the_batch_is_that_of_the_model(batch, wanted):
    content = lower(student_of(fixed_model(batch), 8, 8)).content
    assert TFLiteModel(content).batch == wanted
    assert (open_sizes(content) == 0) == (wanted is not None)


def test_a_given_batch_stands_above_that_of_the_model():
    student = student_of(fixed_model(4), 8, 8)
    assert TFLiteModel(lower(student, batch=1).content).batch == 1


def with_relu6(kind):
    x = inputs = keras.Input((6, 6, 4))
    if kind == "Add":
        x = L.Add()([L.Conv2D(4, 1, name="a")(x), x])
    elif kind == "BatchNormalization":
        x = L.BatchNormalization()(L.MaxPooling2D(2)(x))
    elif kind == "Dense":
        x = L.Dense(4, name="a")(x)
    else:
        x = getattr(L, kind)(kernel_size=3, name="a", **FILTERS.get(kind, {}))(x)
    return keras.Model(inputs, L.Conv2D(2, 1, name="b")(L.ReLU(6.0)(x)))


FILTERS = {"Conv2D": {"filters": 3}}


@pytest.mark.parametrize(
    "kind", ["Conv2D", "DepthwiseConv2D", "Dense", "Add", "BatchNormalization"]
)
def test_relu6_on_tiny_activations_runs_in_every_kernel(kind):
    """Those of an untrained MobileNet end below 1e-9, and 6 / step overflows."""
    model = with_relu6(kind)
    x = images_of(model, 8) * np.float32(1e-7)
    student = student_of(model, 8, 8, x=x)
    lowered, want = lower(student), np.asarray(student(x))
    for kernels in KERNELS:
        have = TFLiteModel(lowered.content, kernels=kernels).predict(x)
        assert np.abs(have - want).max() <= 2.01 * lowered.output_steps[0]


def test_relu6_stays_where_values_reach_beyond_six():
    model = with_relu6("Conv2D")
    x = images_of(model, 8) * np.float32(20)
    student = student_of(model, 8, 8, x=x)
    have = TFLiteModel(lower(student).content).predict(x)
    assert np.abs(have - student(x)).max() <= 1.01 * lower(student).output_steps[0]


def almost_dead(kind, bias):
    """A layer of which but the largest input leaves something above zero."""
    x = inputs = keras.Input((4, 4, 2))
    layer = {
        "Conv2D": L.Conv2D(2, 1, activation="relu", name="a"),
        "DepthwiseConv2D": L.DepthwiseConv2D(1, activation="relu", name="a"),
        "Dense": L.Dense(2, activation="relu", name="a"),
    }[kind]
    model = keras.Model(inputs, layer(x))
    ones = np.ones(2) if kind == "DepthwiseConv2D" else np.eye(2)
    layer.set_weights([ones.reshape(layer.kernel.shape), np.full(2, bias)])
    return model


@pytest.mark.parametrize("kind", ["Conv2D", "DepthwiseConv2D", "Dense"])
def test_sums_far_beyond_the_results_saturate_or_are_refused(kind):
    """In units of 1/127 the bias is -32384.365, and one unit is 401 output steps."""
    x = np.random.default_rng(0).integers(0, 256, (32, 4, 4, 2)).astype("float32")
    x[0] = 255.0
    student = student_of(almost_dead(kind, -254.995), 8, 8, x=x, pinned={})
    with pytest.raises(ExportError, match=r"layer='a'.*snap_biases"):
        lower(student)
    snap_biases(student)
    lowered = lower(student)
    largest = 255 * lowered.output_steps[0]
    want = np.where(127 * x >= 32385, largest, 0)
    for kernels in KERNELS:
        have = TFLiteModel(lowered.content, kernels=kernels).predict(x)
        np.testing.assert_allclose(have, want, rtol=1e-6)


@pytest.mark.parametrize("kind", ["Add", "Multiply", "BatchNormalization"])
def test_operators_that_would_overflow_are_refused_by_name(kind):
    inputs = keras.Input((4, 4, 2))
    sides = [L.Conv2D(2, 1, name=name, use_bias=False)(inputs) for name in "ab"]
    if kind == "BatchNormalization":
        x = L.BatchNormalization(name="last")(L.MaxPooling2D(1)(sides[0]))
    else:
        x = getattr(L, kind)(name="last")(sides)
    model = keras.Model(inputs, L.Conv2D(2, 1, name="c")(L.ReLU()(x)))
    student = student_of(model, 8, 8)
    quantizers = [q for q in student.layers if q.name.startswith("last")]
    for quantizer in [*quantizers, student.get_layer("c").input_quantizer]:
        if hasattr(quantizer, "set_branch"):
            quantizer.set_branch(0, 1e-12)
    with pytest.raises(ExportError, match=r"layer='last'.*dead layer"):
        lower(student)
