"""Outputs keep the names of the float model: losses, metrics and files use them."""

import keras
import numpy as np
import pytest
from keras import layers

import gmpq_tf as gmpq
from gmpq_tf.export.tflite import export_tflite
from gmpq_tf.export.tflite.lowering import lower
from gmpq_tf.export.tflite.runtime import TFLiteModel
from gmpq_tf.transform.rewrite import NamedOutputs

X = np.random.default_rng(0).normal(size=(8, 6, 6, 3)).astype("float32")
Y = {"label": np.arange(8) % 3, "box": np.zeros((8, 4)), "size": np.zeros((8, 1))}
LOSS = {"label": "sparse_categorical_crossentropy", "box": "mse", "size": "mse"}


def model_of(form):
    inputs = keras.Input((6, 6, 3))
    x = layers.Flatten()(layers.Conv2D(4, 3, activation="relu")(inputs))
    outputs = [
        layers.Dense(3, activation="softmax", name="label")(x),
        layers.Dense(4, activation="sigmoid", name="box")(x),
        layers.Dense(1, name="size")(x),
    ]
    named = dict(zip(Y, outputs, strict=True))
    return keras.Model(inputs, named if form == "dict" else outputs)


def trained(model):
    weights, metrics = {"label": 1.0, "box": 2.0, "size": 1.0}, {"label": ["accuracy"]}
    options = {"metrics": metrics, "jit_compile": False}
    if isinstance(model, gmpq.PolicySearch):
        model.compile("sgd", "sgd", loss=LOSS, **options)
    else:
        model.compile("sgd", LOSS, loss_weights=weights, **options)
    return model.fit(X, Y, verbose=0).history


def test_files_have_the_keys_of_a_dict_whatever_its_layers_are_called(tmp_path):
    inputs = keras.Input((6, 6, 3), name="image")
    x = layers.Conv2D(4, 3, activation="relu")(inputs)
    pooled = layers.GlobalAveragePooling2D()(x)
    kind = layers.Softmax(name="size")(layers.Dense(3, name="one")(pooled))
    parts = [layers.Conv2D(2, 1, name="kind")(x), layers.Dense(2, name="two")(pooled)]
    model = keras.Model(
        inputs, {"size": parts[0], "kind": kind, "more": {"two": parts[1]}}
    )
    student = gmpq.quantize_model(model, gmpq.BitwidthPolicy.uniform(model, 8, 8))
    gmpq.calibrate(student, [X])
    report = export_tflite(
        student, tmp_path / "m.tflite", verify_data=X, latency_runs=0
    )
    wanted = {"kind": (3,), "more/two": (2,), "size": (4, 4, 2)}
    assert {o.name for o in report.outputs} == wanted.keys()
    runtime = TFLiteModel(tmp_path / "m.tflite").interpreter
    found = {d["name"]: tuple(d["shape"][1:]) for d in runtime.get_output_details()}
    assert found == wanted
    said, own = runtime.get_signature_runner()(image=X[:1]), student(X[:1])
    for name, values in {**own, "more/two": own["more"]["two"]}.items():
        if name in wanted:
            np.testing.assert_allclose(said[name], values, atol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["list", "dict"])
def test_losses_and_files_know_outputs_by_name(form, tmp_path):
    model = model_of(form)
    wanted = trained(model).keys()
    policy = gmpq.BitwidthPolicy.uniform(model, 8, 8)
    assert {*policy} == {model.layers[1].name, "label", "box", "size"}
    student = gmpq.quantize_model(model, policy)
    gmpq.calibrate(student, [X])
    assert student.output_names == model.output_names
    assert trained(student).keys() == wanted
    student.save(tmp_path / "s.keras")
    again = keras.models.load_model(tmp_path / "s.keras", compile=False)
    assert isinstance(again, NamedOutputs)
    assert again.output_names == model.output_names
    assert trained(again).keys() == wanted
    runtime = TFLiteModel(lower(again).content).interpreter
    (signature,) = runtime.get_signature_list().values()
    assert {*signature["outputs"]} == {*model.output_names}
    details = runtime.get_output_details()
    assert {detail["name"] for detail in details} == {*model.output_names}
    search = gmpq.PolicySearch(model, eta=0.0)
    assert "label_accuracy" in trained(search)
