"""Layers that stay float inside a file of integers."""

import json

import keras
import numpy as np
import pytest
from keras import ops

import gmpq_tf as gmpq
from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.tflite import export_tflite
from gmpq_tf.export.tflite.exporter import REPORT_NAME
from gmpq_tf.export.tflite.lowering import lower
from gmpq_tf.export.tflite.runtime import TFLiteModel
from gmpq_tf.export.tflite.twin.compare import compare_twin
from gmpq_tf.export.tflite.verify import local_deviations

L = keras.layers
X = np.random.default_rng(0).normal(size=(16, 8, 8, 3)).astype("float32")
pytestmark = pytest.mark.filterwarnings("ignore:.*will refuse")


def convnext():
    """Depthwise 7x7, LayerNormalization, wide gelu, scaled residual: two blocks."""
    x = inputs = keras.Input((8, 8, 3), name="image")
    x = L.LayerNormalization(name="stem_norm")(L.Conv2D(8, 2, 2, name="stem")(x))
    for block in "ab":
        y = L.DepthwiseConv2D(7, padding="same", name=f"{block}_wide")(x)
        y = L.LayerNormalization(name=f"{block}_norm")(y)
        y = L.Dense(16, activation="gelu", name=f"{block}_up")(y)
        x = L.Add()([x, L.Dense(8, name=f"{block}_down")(y)])
    x = L.LayerNormalization(name="head_norm")(L.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, L.Dense(5, name="scores")(x))


def mobilevit():
    """Convolutions around attention over patches, with silu."""
    x = inputs = keras.Input((8, 8, 3), name="image")
    x = L.Conv2D(8, 3, 2, padding="same", activation="silu", name="stem")(x)
    y = L.Reshape((16, 8))(x)
    y = L.LayerNormalization(name="norm")(y)
    y = L.MultiHeadAttention(2, 4, name="attention")(y, y)
    y = L.Reshape((4, 4, 8))(y)
    x = L.Concatenate()([x, L.Conv2D(8, 1, name="back")(y)])
    x = L.Activation("tanh", name="tanh")(L.Conv2D(8, 3, name="fuse")(x))
    x = L.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, L.Dense(5, activation="softmax", name="scores")(x))


FLOAT = {
    convnext: {"stem_norm", "a_norm", "b_norm", "head_norm"},
    mobilevit: {"norm", "attention", "tanh"},
}


def student_of(model, bits=8):
    student = gmpq.quantize_model(model, gmpq.BitwidthPolicy.uniform(model, bits, bits))
    gmpq.calibrate(student, X)
    gmpq.snap_biases(student)
    return student


@pytest.mark.quick_rows(1)
@pytest.mark.parametrize("net", FLOAT)
def test_networks_of_today_go_the_whole_way(net, tmp_path):
    student, path = student_of(net()), tmp_path / "m.tflite"
    with pytest.raises(ExportError, match="--float_layers=allow"):
        export_tflite(student, path)
    assert not path.exists()
    options = {"float_layers": "allow", "verify_data": X, "latency_runs": 0}
    report = export_tflite(student, path, **options)
    names = {part.name for part in report.float_parts}
    assert names >= FLOAT[net]
    assert net is mobilevit or len(names - FLOAT[net]) == 2  # and the two of gelu
    assert report.agreement >= 0.9
    stored = json.loads((tmp_path / REPORT_NAME).read_text())["float_parts"]
    assert {row["name"] for row in stored} == names
    assert all(row["operators"] for row in stored)
    norm = next(p for p in report.float_parts if p.kind == "LayerNormalization")
    assert norm.constant_bytes >= 8 * 4 and norm.time_share is None
    # Any batch, as of other files.
    scores = TFLiteModel(path).predict(X, batch_size=5)
    np.testing.assert_allclose(scores, TFLiteModel(path).predict(X), atol=1e-5)
    assert np.mean(np.abs(scores - np.asarray(student(X))) < 0.2) > 0.9


@pytest.mark.parametrize("net", FLOAT)
def test_each_tensor_after_a_float_layer_is_near_keras(net):
    lowered = lower(student_of(net(), 4), float_layers="allow")
    found = {d.name: d for d in local_deviations(lowered, [X])}
    for part in lowered.float_parts:
        assert found[part.name].off < 0.01 and found[part.name].far == 0


def around(case):
    x = inputs = keras.Input((8, 8, 3), name="image")
    x = L.Conv2D(4, 3, name="first")(x)
    x = L.Conv2D(4, 3, name="last")(case(x))
    return keras.Model(inputs, L.Flatten()(x))


def similarities(x):
    """Pixels times pixels, as attention written in operations of Keras does."""
    x = L.Reshape((36, 4))(x)
    return L.Reshape((6, 6, 36))(ops.matmul(x, ops.transpose(x, (0, 2, 1))))


CASES = {
    "matmul": similarities,
    "two floats": lambda x: L.LayerNormalization()(ops.tanh(x)),
    "softmax": lambda x: L.Softmax()(x),
    "two inputs": lambda x: L.Maximum()([x, ops.abs(x)]),
    "one twice": lambda x: L.Maximum()([x, x]),
    "difference": lambda x: L.Subtract()([x, L.ReLU()(x)]),
    "group norm": lambda x: L.GroupNormalization(2)(x),
    "shapes computed in the file": lambda x: L.TimeDistributed(L.Dense(4))(x),
    "residual": lambda x: L.Add()([x, L.Activation("gelu")(x)]),
}
# Constants in float of four channels: scale, shift and epsilon, or a kernel without its
# bias of zeros; not shapes and axes.
BYTES = {"two floats": 36, "group norm": 36, "shapes computed in the file": 64}


@pytest.mark.quick_rows(4)
@pytest.mark.parametrize("case", CASES)
def test_float_layers_wherever_they_stand(case):
    model = around(CASES[case])
    for layer in model.layers:  # the converter leaves scales of 1 and shifts of 0 out
        if hasattr(layer, "gamma"):
            layer.set_weights(
                [w + np.linspace(0.1, 0.2, 4) for w in layer.get_weights()]
            )
    lowered = lower(student_of(model), float_layers="allow")
    assert lowered.float_parts
    found = local_deviations(lowered, [X])
    assert {d.name: d.off for d in found if d.off > 0.01} == {}
    assert compare_twin(lowered.content, [X]).off == 0
    assert sum(p.constant_bytes for p in lowered.float_parts) == BYTES.get(case, 0)


def test_what_the_converter_lacks_is_refused_by_name():
    case = L.UpSampling2D(2, interpolation="bicubic", name="bicubic")
    with pytest.raises(ExportError, match=r"'bicubic' of kind .*: ResizeBicubic"):
        lower(student_of(around(case)), float_layers="allow")


def test_integer_models_have_no_float_parts(tmp_path):
    student = student_of(around(lambda x: L.ReLU()(x)))
    assert lower(student, float_layers="allow").content == lower(student).content
    with pytest.raises(ExportError, match="Did you mean 'allow'"):
        export_tflite(student, tmp_path / "m.tflite", float_layers="alow")


def test_kernels_without_integers_are_refused_still():
    student = student_of(around(lambda x: L.Conv2DTranspose(4, 3, name="up")(x)))
    # Afterwards, because without oneDNN TensorFlow cannot compute it on a CPU.
    student.get_layer("up").dilation_rate = (2, 2)
    with pytest.raises(ExportError, match="'up' with dilation") as caught:
        lower(student, float_layers="allow")
    assert "--float_layers" not in str(caught.value)


def test_the_share_of_time_is_measured_where_asked(tmp_path, measures_latency):
    report = export_tflite(
        student_of(around(ops.tanh)),
        tmp_path / "m.tflite",
        float_layers="allow",
        latency_runs=2,
    )
    (part,) = report.float_parts
    assert part.operators == ("TANH",) and 0 < part.time_share < 5
    assert "in float: TANH" in str(part) and "% of the time" in str(part)
