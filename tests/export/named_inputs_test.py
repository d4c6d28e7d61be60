"""Models of several inputs, exported: every input by its name, in a known order."""

from importlib.util import find_spec

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from keras import layers

import gmpq_tf as gmpq
from gmpq_tf.export import tfmot
from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.float_model import float_tflite
from gmpq_tf.export.tflite.exporter import export_tflite
from gmpq_tf.export.tflite.runtime import TFLiteModel
from gmpq_tf.graph import searchable_names

N = 40
RANDOM = np.random.default_rng(0)
X = {
    "view": RANDOM.uniform(0, 1, (N, 6, 6, 1)).astype("float32"),
    "back": RANDOM.uniform(0, 3, (N, 6, 6, 1)).astype("float32"),
}
Y = np.arange(N) % 3


def conv(name):
    return layers.Conv2D(4, 3, name=name, activation="relu")


def network(kind, batch=None):
    """`view` and `back`: one shape, and not in the order of the sorted names."""
    keras.utils.set_random_seed(0)
    view, back = (keras.Input(batch_shape=(batch, 6, 6, 1), name=n) for n in X)
    x = layers.Concatenate()([conv("c")(view), conv("d")(back)])
    inputs = {"list": [view, back], "dict": {"view": view, "back": back}}[kind]
    return keras.Model(inputs, layers.Dense(3, name="head")(layers.Flatten()(x)))


def nested():
    """Calls `network` with a dict in another order than it was built with."""
    one, two = (keras.Input((6, 6, 1), name=n) for n in ("view", "back"))
    return keras.Model([one, two], network("list")({"back": two, "view": one}))


def student_of(model, data=None):
    bits = dict.fromkeys(searchable_names(model), (8, 8))
    student = gmpq.quantize_model(model, gmpq.BitwidthPolicy(model.name, bits))
    gmpq.calibrate(student, X if data is None else data)
    gmpq.snap_biases(student)
    return student


def run(path, values):
    """The file's output by the public interpreter, its inputs found by name."""
    interpreter = Interpreter(str(path))
    runner = interpreter.get_signature_runner()
    rows = []
    for i in range(N):
        (row,) = runner(**{k: v[i : i + 1] for k, v in values.items()}).values()
        rows.append(row)
    return np.concatenate(rows)


@pytest.fixture(scope="module", params=["list", "dict", "nested"])
def pair(request):
    model = nested() if request.param == "nested" else network(request.param)
    return model, student_of(model)


def forms():
    dataset = tf.data.Dataset.from_tensor_slices
    return {
        "dict": (X, Y),
        "tf.data": (dataset((X, Y)).batch(16), None),
        "tf.data with weights": (dataset((X, Y, np.ones(N))).batch(16), None),
        "generator": (iter([(X, Y)]), None),
        "random": (None, None),
    }


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize("form", forms())
def test_the_file_reads_each_input_by_its_name(pair, form, tmp_path):
    model, student = pair
    data, labels = forms()[form]
    path = tmp_path / "model.tflite"
    report = export_tflite(
        student, path, verify_data=data, labels=labels, latency_runs=0
    )
    assert report.agreement == 1.0
    assert report.max_steps <= 1.0
    if form != "random":
        assert report.images == N
    wanted = np.asarray(model(X))  # stock Keras, float
    scale = np.abs(wanted).max()
    assert np.abs(run(path, X) - wanted).max() < 0.1 * scale
    other = {"view": X["back"], "back": X["view"]}
    assert np.abs(run(path, other) - wanted).max() > 0.2 * scale


def test_inputs_stand_in_the_order_of_the_models_inputs(pair, tmp_path):
    _, student = pair
    path = tmp_path / "model.tflite"
    export_tflite(student, path, latency_runs=0)
    details = Interpreter(str(path)).get_input_details()
    assert [d["name"] for d in details] == [t.name for t in student.inputs]


def test_a_wrong_name_is_refused_and_the_nearest_named(pair, tmp_path):
    _, student = pair
    path = tmp_path / "model.tflite"
    with pytest.raises(ExportError, match="Did you mean 'vieww'"):
        export_tflite(
            student, path, verify_data={"vieww": X["view"], "back": X["back"]}
        )
    assert not path.exists()


@pytest.mark.parametrize("kind", ["float32", "uint8"])
def test_an_input_that_no_layer_reads_is_an_input_of_the_file(kind, tmp_path):
    image, extra = keras.Input((6, 6, 3), name="image"), keras.Input((4,), name="extra")
    x = layers.Dense(3, name="scores")(layers.Flatten()(image))
    data = {"image": np.ones((4, 6, 6, 3)), "extra": np.ones((4, 4))}
    student = student_of(keras.Model([extra, image], x), data)
    path = tmp_path / "m.tflite"
    export_tflite(student, path, input_type=kind, latency_runs=0)
    runner = Interpreter(str(path)).get_signature_runner()
    kinds = {name: row["dtype"] for name, row in runner.get_input_details().items()}
    zeros = {"image": np.zeros((1, 6, 6, 3), kind), "extra": np.zeros((1, 4), kind)}
    assert kinds == {name: array.dtype for name, array in zeros.items()}
    ones = {**zeros, "extra": zeros["extra"] + np.ones(1, kind)}
    np.testing.assert_array_equal(runner(**zeros)["scores"], runner(**ones)["scores"])


def test_models_for_one_image_at_once(tmp_path):
    student = student_of(network("dict", batch=1))
    report = export_tflite(
        student, tmp_path / "m.tflite", verify_data=X, labels=Y, latency_runs=0
    )
    assert (report.images, report.agreement) == (N, 1.0)


def test_several_outputs_with_labels(tmp_path):
    i = keras.Input((6, 6, 1), name="image")
    x = layers.Flatten()(conv("a")(i))
    heads = {"kind": layers.Dense(3, name="kind")(x), "at": layers.Dense(4)(x)}
    student = student_of(keras.Model(i, heads), X["view"])
    labels = {"kind": Y, "at": np.zeros((N, 4))}
    for given in (labels, (labels["at"], labels["kind"])):
        report = export_tflite(
            student,
            tmp_path / "model.tflite",
            verify_data=X["view"],
            labels=given,
            latency_runs=0,
        )
        assert report.agreement > 0.9


@pytest.mark.quick_rows(2)
def test_files_are_run_by_name_whatever_order_their_inputs_have(pair, tmp_path):
    model, student = pair
    path, wanted = tmp_path / "model.tflite", np.asarray(student(X))
    export_tflite(student, path, latency_runs=0)
    np.testing.assert_allclose(TFLiteModel(path).predict(X), wanted, atol=1e-5)
    content = float_tflite(student)  # its inputs are sorted
    received = TFLiteModel(content).predict(X)
    np.testing.assert_allclose(received, model(X), atol=0.1)
    with pytest.raises(ExportError, match="Did you mean 'bakc'"):
        TFLiteModel(content).predict({"view": X["view"], "bakc": X["back"]})


@pytest.mark.skipif(
    find_spec("tensorflow_model_optimization") is None, reason="no extra `tfmot`"
)
@pytest.mark.parametrize("kind", ["list", "dict"])
def test_a_tf_keras_model_is_checked_by_name(kind, tmp_path):
    model = network(kind)
    student = student_of(model)
    bits = dict.fromkeys(searchable_names(model), (8, 8))
    wrapped = tfmot.quantize_apply(student, gmpq.BitwidthPolicy(model.name, bits))
    path = tmp_path / "model.tflite"
    report = tfmot.export_tflite(wrapped, path, verify_data=X, latency_runs=0)
    assert report.agreement == 1.0
    assert np.abs(run(path, X) - np.asarray(model(X))).max() < 0.15
