"""What the report says of each output, against NumPy on the interpreter's outputs."""

import json
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.tflite import exporter
from gmpq_tf.export.tflite.exporter import export_tflite
from gmpq_tf.export.tflite.outputs import Tally, summary
from gmpq_tf.task import Binary, Classes, Numbers, Output, TaskError
from gmpq_tf.transform import snap_biases
from tests.export.nets import student_of

L = keras.layers
N = 96


def images(side=8, channels=3, seed=0):
    random = np.random.default_rng(seed)
    return random.uniform(-1, 1, (N, side, side, channels)).astype("float32")


def flat_net(*last, units=1, spread=1.0):
    """Scores spread around 0, so that some lie close to it."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((8, 8, 3), name="image")
    x = L.Conv2D(4, 3, strides=2, activation="relu", name="first")(inputs)
    head = L.Dense(units, kernel_initializer=keras.initializers.RandomNormal(0, spread))
    x = head(L.Flatten()(x))
    for layer in last:
        x = layer(x)
    return keras.Model(inputs, x)


def map_net(activation, channels):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((8, 8, 3), name="image")
    x = L.Conv2D(6, 3, padding="same", activation="relu", name="first")(inputs)
    return keras.Model(inputs, L.Conv2D(channels, 1, activation=activation)(x))


def biased(model):
    """Biases that no accumulator holds as they are."""
    for layer in model.layers:
        if layer.weights:
            layer.bias.assign(np.random.default_rng(0).normal(0, 0.3, layer.bias.shape))
    return model


def ready(model, bits=(8, 8), snap=True):
    student = student_of(model, *bits, x=images())
    if snap:
        snap_biases(student)
    return student


def run(path, x):
    """Outputs of a file, image by image, from the public interpreter."""
    runtime = Interpreter(model_path=str(path))
    runtime.allocate_tensors()
    found = []
    for image in x:
        runtime.set_tensor(runtime.get_input_details()[0]["index"], image[None])
        runtime.invoke()
        details = runtime.get_output_details()
        found.append([runtime.get_tensor(d["index"])[0].copy() for d in details])
    return [np.stack(parts) for parts in zip(*found, strict=True)]


DECISIONS = {
    "argmax": lambda v: v.argmax(-1),
    "0.5": lambda v: v > 0.5,
    "0": lambda v: v > 0,
}
OUTPUTS = {
    "softmax": (flat_net, (L.Softmax(),), 4, None, "argmax", "argmax of 4 classes"),
    "logits": (flat_net, (), 4, None, "argmax", "argmax of 4 classes (assumed)"),
    "one sigmoid": (
        flat_net,
        (L.Activation("sigmoid"),),
        1,
        None,
        "0.5",
        "decisions at 0.5",
    ),
    "one logit": (
        flat_net,
        (),
        1,
        keras.losses.BinaryCrossentropy(from_logits=True),
        "0",
        "decisions above 0",
    ),
    "labels": (
        flat_net,
        (L.Activation("sigmoid"),),
        5,
        "binary_crossentropy",
        "0.5",
        "decisions at 0.5, 5 of each image",
    ),
    "mask": (
        map_net,
        "sigmoid",
        1,
        None,
        "0.5",
        "decisions at 0.5 at each of 8 x 8 places",
    ),
    "segments": (
        map_net,
        "softmax",
        3,
        None,
        "argmax",
        "argmax of 3 classes at each of 8 x 8 places",
    ),
}


@pytest.mark.quick_rows(3)
@pytest.mark.parametrize("case", OUTPUTS)
def test_decisions_are_those_of_the_output(tmp_path, case):
    net, last, units, loss, rule, compared = OUTPUTS[case]
    model = net(*last, units=units) if net is flat_net else net(last, units)
    student, x = ready(biased(model), (3, 3), snap=False), images(seed=3)
    if loss:
        student.compile("sgd", loss)
    decide = DECISIONS[rule]
    want = np.asarray(student(x))
    labels = decide(np.asarray(model(x))).astype(int)
    report = export_tflite(
        student,
        tmp_path / "m.tflite",
        verify_data=x,
        labels=None if case == "logits" else labels,
        least_agreement=0,
    )
    (have,) = run(tmp_path / "m.tflite", x)
    same = decide(want) == decide(have)
    assert report.agreement == pytest.approx(same.mean())
    (row,) = report.outputs
    assert row.compared == compared
    assert row.near is None
    if case != "logits":
        assert report.keras_accuracy == pytest.approx((decide(want) == labels).mean())
        assert report.tflite_accuracy == pytest.approx((decide(have) == labels).mean())
    written = json.loads((tmp_path / "export_report.json").read_text())
    assert written["outputs"][0]["compared"] == compared


def test_one_sigmoid_is_not_refused_for_steps(tmp_path):
    """Most values are a step or more apart, nearly all decisions are equal."""
    model = biased(flat_net(L.Activation("sigmoid"), spread=0.3))
    student, x = ready(model, (3, 3), snap=False), images(seed=3)
    report = export_tflite(student, tmp_path / "m.tflite", verify_data=x)
    assert report.agreement >= 0.95


@pytest.mark.parametrize("last", ["linear", "sigmoid"])
def test_numbers_are_compared_in_steps_and_error(tmp_path, last):
    layers = [L.Activation(last)] if last == "sigmoid" else []
    model = biased(flat_net(*layers, units=4))
    student, x = ready(model, (3, 3), snap=False), images(seed=3)
    student.compile("sgd", "mse")
    targets = np.asarray(model(x)) + 0.01
    report = export_tflite(
        student, tmp_path / "m.tflite", verify_data=x, labels=targets
    )
    (have,), want = run(tmp_path / "m.tflite", x), np.asarray(student(x))
    (row,) = report.outputs
    off = np.abs(have - want)
    assert (row.kind, row.agreement, row.keras_accuracy) == ("numbers", None, None)
    assert report.keras_accuracy is report.tflite_accuracy is None
    assert report.agreement == row.near
    assert row.max_error == pytest.approx(off.max(), abs=1e-6)
    assert row.mean_error == pytest.approx(off.mean(), abs=1e-6)
    assert row.relative_error == pytest.approx(off.mean() / np.ptp(want), abs=1e-6)
    assert row.mean_steps == pytest.approx(off.mean() / row.step, abs=1e-4)
    assert row.near == pytest.approx((off <= 4.01 * row.step).mean())
    assert row.keras_error == pytest.approx(np.abs(want - targets).mean(), rel=1e-5)
    assert row.tflite_error == pytest.approx(np.abs(have - targets).mean(), rel=1e-5)
    assert "accuracy" not in str(row)
    assert "agreement" not in str(row)


def test_an_image_made_anew_is_numbers(tmp_path):
    """Inputs as labels say so, though nothing else does."""
    student, x = ready(map_net("sigmoid", 3)), np.abs(images(seed=3))
    data = tf.data.Dataset.from_tensor_slices((x, x)).batch(32)
    report = export_tflite(student, tmp_path / "m.tflite", verify_data=data)
    (row,) = report.outputs
    assert (row.kind, row.known_from, row.near) == ("numbers", "labels", 1.0)
    report = export_tflite(
        student, tmp_path / "m.tflite", verify_data=x, output_kinds="binary"
    )
    assert report.outputs[0].known_from == "stated"
    assert report.outputs[0].compared == "decisions at 0.5 at each of 8 x 8 places"


def two_heads(as_dict):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3), name="image")
    x = L.Flatten()(L.Conv2D(4, 3, strides=2, activation="relu")(inputs))
    heads = {
        "label": L.Dense(3, activation="softmax", name="label")(x),
        "box": L.Dense(4, activation="sigmoid", name="box")(x),
    }
    return keras.Model(inputs, heads if as_dict else [heads["label"], heads["box"]])


@pytest.mark.quick_rows(1)
@pytest.mark.parametrize("form", [dict, list, tuple, "dict of a list model"])
def test_each_of_several_outputs_has_its_figures(tmp_path, form):
    as_dict = form is dict
    student, x = ready(two_heads(as_dict)), images(seed=3)
    losses = {"label": "sparse_categorical_crossentropy", "box": "mse"}
    student.compile("sgd", losses if as_dict else list(losses.values()))
    want = student(x)
    want = want if as_dict else dict(zip(losses, want, strict=True))
    want = {name: np.asarray(value) for name, value in want.items()}
    truth = np.random.default_rng(0).integers(0, 3, N)
    box = np.random.default_rng(0).uniform(0, 1, (N, 4)).astype("float32")
    labels = {"label": truth, "box": box}
    if form in (list, tuple):
        labels = form(labels.values())
    data = tf.data.Dataset.from_tensor_slices(
        (x, tuple(labels) if isinstance(labels, list) else labels)
    ).batch(40)
    report = export_tflite(student, tmp_path / "m.tflite", verify_data=data)
    again = export_tflite(student, tmp_path / "m.tflite", verify_data=x, labels=labels)
    assert report.outputs == again.outputs
    rows = {row.name: row for row in report.outputs}
    have = dict(zip([*rows], run(tmp_path / "m.tflite", x), strict=True))
    right = {n: v["label"].argmax(-1) == truth for n, v in (("k", want), ("t", have))}
    same = want["label"].argmax(-1) == have["label"].argmax(-1)
    assert rows["label"].agreement == report.agreement == same.mean()
    assert report.keras_accuracy == rows["label"].keras_accuracy == right["k"].mean()
    assert report.tflite_accuracy == rows["label"].tflite_accuracy == right["t"].mean()
    assert (rows["box"].kind, rows["box"].agreement) == ("numbers", None)
    assert rows["box"].keras_error == pytest.approx(np.abs(want["box"] - box).mean())


def tallied(kind, shape, want, have, labels=None, step=0.1):
    tally = Tally(Output("out", kind, "stated", shape), step)
    tally.add(np.asarray(want, "float32"), np.asarray(have, "float32"), labels)
    return tally.report()


@pytest.mark.parametrize("kind", [Classes(), Binary(), Numbers()])
@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_outputs_that_are_not_finite_are_no_figures(kind, number):
    good, bad = np.float32([[0.9, 0.1]]), np.float32([[number, 0.1]])
    tally = Tally(Output("out", kind, "stated", (2,)), 0.1)
    for given, whose in (
        (lambda: tally.add(bad, good), "Keras model"),
        (lambda: tally.add(good, bad), "file"),
        (lambda: tally.add_builtin(good, bad), "built-in kernels"),
        (lambda: tally.add_twin(bad, good), "integer twin"),
    ):
        with pytest.raises(TaskError, match=f"'out' of the .*{whose}"):
            given()


def test_a_tie_is_no_disagreement():
    want = [[0.5, 0.5, 0.0], [0.2, 0.3, 0.5], [0.9, 0.1, 0.0], [0.6, 0.4, 0.0]]
    have = [[0.4, 0.6, 0.0], [0.5, 0.0, 0.5], [0.9, 0.1, 0.0], [0.4, 0.6, 0.0]]
    row = tallied(Classes(), (3,), want, have)
    assert (row.agreement, row.ties, row.alike) == (0.25, 0.5, 0.75)
    row = tallied(Binary(0.0), (1,), [[0], [1], [1]], [[0.1], [0], [-1]])
    assert (row.agreement, row.ties) == (0.0, pytest.approx(2 / 3))
    total = summary(4, [row])
    assert (total.agreement, total.ties) == (row.agreement, row.ties)


def test_numbers_too_far_apart_are_refused_with_the_figures(tmp_path, monkeypatch):
    row = tallied(Numbers(), (2,), [[1, 0.5], [0, 0]], [[1.5, 0.5], [0, 0]])
    assert (row.near, row.mean_error) == (0.75, 0.125)
    monkeypatch.setattr(exporter, "compare_outputs", lambda *args: summary(2, [row]))
    student, path = ready(flat_net(units=2)), tmp_path / "m.tflite"
    given = {"verify_data": images(), "output_kinds": "numbers", "verify": "agreement"}
    message = r"75.0% on 2 images.*mean error 0.125 \(12.5% of the range\).*near_steps"
    with pytest.raises(ExportError, match=message):
        export_tflite(student, path, **given)
    assert not path.exists()
    export_tflite(student, path, least_agreement=0.75, **given)


def test_the_least_alike_output_is_the_files():
    good = tallied(Classes(), (2,), [[1, 0], [0, 1]], [[1, 0], [0, 1]])
    bad = tallied(Classes(), (2,), [[1, 0], [0, 1]], [[1, 0], [1, 0]])
    plain = tallied(Numbers(), (2,), [[1, 0.5]], [[0.8, 0.5]])
    assert summary(2, [good, bad, plain]).agreement == 0.5
    assert summary(2, [good, bad, plain]).max_steps == pytest.approx(10)
    assert summary(1, [plain]).agreement == plain.near == 1.0
    assert summary(1, [plain]).keras_accuracy is None
    assert plain.mean_error == pytest.approx(0.1)


def test_labels_that_do_not_fit_are_refused_and_nothing_is_written(tmp_path):
    student, x = ready(flat_net(L.Softmax(), units=4)), images(seed=3)
    for labels in (np.full(N, 7), np.zeros((N, 3))):
        with pytest.raises(ExportError, match="abels"):
            export_tflite(student, tmp_path / "m.tflite", verify_data=x, labels=labels)
    with pytest.raises(ExportError, match=r"'clases'.*'classes'"):
        export_tflite(student, tmp_path / "m.tflite", output_kinds="clases")
    assert not list(tmp_path.iterdir())


def test_a_student_that_was_never_snapped_says_so(tmp_path):
    model = biased(flat_net(units=4))
    student = ready(model, snap=False)
    with pytest.warns(UserWarning, match=r"'first', 'dense.*snap_biases\(student"):
        report = export_tflite(student, tmp_path / "m.tflite")
    assert report.unsnapped_layers == ("first", model.layers[-1].name)
    snap_biases(student)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        report = export_tflite(student, tmp_path / "m.tflite", scale_codes=True)
    assert report.unsnapped_layers == ()
    written = json.loads((tmp_path / "export_report.json").read_text())
    assert written["unsnapped_layers"] == []


@pytest.mark.parametrize("broken", ["export_report.json", "m.tflite"])
def test_a_refused_export_leaves_both_files_as_they_were(tmp_path, broken):
    old = {name: tmp_path / name for name in ("export_report.json", "m.tflite")}
    for name, path in old.items():
        if name == broken:
            path.mkdir()  # cannot be written, even by root
        else:
            path.write_text("as before")
    with pytest.raises(ExportError, match="must be writable"):
        export_tflite(ready(flat_net()), tmp_path / "m.tflite")
    for name, path in old.items():
        assert path.is_dir() if name == broken else path.read_text() == "as before"
    assert len(list(tmp_path.iterdir())) == 2
