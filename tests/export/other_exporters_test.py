"""Each row of KINDS in the exports to TFMOT and recipes: right or refused by name."""

import importlib.util
import re

import keras
import numpy as np
import pytest

import gmpq_tf as gmpq
from gmpq_tf.export import tfmot
from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.float_model import float_tflite
from gmpq_tf.export.litert_recipe import recipe
from gmpq_tf.export.tflite.runtime import TFLiteModel
from gmpq_tf.graph import is_searchable, read_graph
from gmpq_tf.layer_kinds import FUNCTIONS, KINDS, Role
from tests.export.conformance_test import CASES, L, X, model_of, student_of

needs_tfmot = pytest.mark.skipif(
    not all(
        importlib.util.find_spec(name)
        for name in ("tensorflow_model_optimization", "tf_keras")
    ),
    reason="the extra `tfmot` is not installed",
)
ROWS = [kind for kind in CASES if kind != "InputQuantizer"]  # those are in students


def is_carried(kind):
    """Whether the row says how tf_keras has it."""
    return KINDS[kind].arguments is not None or KINDS[kind].twin is not None


def assert_names_a_layer(error, model):
    names = [call.name for call in read_graph(model).calls]
    assert any(name in re.split(r"[\s'\"]+", str(error)) for name in names), str(error)


def is_close(have, wanted):
    have, wanted = np.asarray(have), np.asarray(wanted)
    return np.abs(have - wanted).max() <= 1e-4 * max(1.0, np.abs(wanted).max())


@pytest.mark.quick_rows(18)
@needs_tfmot
@pytest.mark.parametrize("kind", ROWS)
def test_tf_keras_computes_a_row_or_it_is_refused_by_name(kind):
    model = model_of(CASES[kind])
    if not is_carried(kind):
        with pytest.raises(ExportError) as caught:
            tfmot.to_tf_keras(model)
        assert_names_a_layer(caught.value, model)
        # What replaces a LeakyReLU is no ReLU, and no pool replaces an Average.
        assert "Did you mean" not in str(caught.value)
        refused = re.search(r"of kind (\w+)", str(caught.value))[1]
        taken = KINDS[refused].role not in (Role.FLOAT, Role.HOST)
        assert ("export_tflite" in str(caught.value)) == taken
        known = {"LeakyReLU": True, "Average": True, "Cast": False, "Maximum": False}
        assert taken == known.get(kind, taken)
        return
    assert is_close(tfmot.to_tf_keras(model)(X), model(X))


ACTIVATIONS = [f.name for f in FUNCTIONS.values() if f.fused or f.exports or f.ends]


@needs_tfmot
@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("inside", [True, False])
def test_tf_keras_computes_an_activation_or_it_is_refused_by_name(name, inside):
    model = model_of(
        lambda x, y: (
            L.Conv2D(4, 1, activation=name)(x) if inside else L.Activation(name)(y)
        )
    )
    try:
        converted = tfmot.to_tf_keras(model)
    except ExportError as error:
        found = str(error)
        assert name not in ("linear", "relu", "relu6", "softmax", "sigmoid")
        assert (name in found and "conv2d" in found) or "activation" in found
    else:
        assert is_close(converted(X), model(X))


ROUND = (
    "Conv1D",
    "DepthwiseConv1D",
    "UpSampling1D",
    "AveragePooling1D",
    "UpSampling2D bilinear",
    "Sigmoid",
    "Rescaling",
)


@pytest.mark.quick_rows(2)
@needs_tfmot
@pytest.mark.parametrize("kind", ROUND)
def test_new_rows_go_through_tfmot_and_back(kind):
    model = model_of(CASES[kind])
    policy, student = gmpq.BitwidthPolicy.uniform(model, 4, 4), student_of(model)
    wrapped = tfmot.quantize_apply(student, policy)
    wanted = np.asarray(student(X))
    for have in (wrapped(X), tfmot.to_student(wrapped)(X)):
        # Sums of floats end beside a half otherwise, of few codes.
        assert np.mean(np.abs(np.asarray(have) - wanted) <= 1e-4) >= 0.95


# Depthwise codes that do not reach 127, a kind that was not tried, and a constant that
# TensorFlow's converter folds into the kernel before it.
UNSAID = ("DepthwiseConv1D", "Conv1DTranspose", "Divide")
RULED = ("Conv1D", "DepthwiseConv1D", "Conv1DTranspose", "Multiply", "Silu", "Divide")


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize("kind", RULED)
def test_each_kernel_has_its_rule_or_is_refused_by_name(kind):
    model = model_of(CASES[kind])
    policy = gmpq.BitwidthPolicy.uniform(model, 4, 8)
    policy = gmpq.BitwidthPolicy(policy.model, {n: (4, 8) for n, _ in policy.items()})
    student = gmpq.quantize_model(model, policy)
    gmpq.calibrate(student, X)
    content = float_tflite(student)
    try:
        rules = recipe(student, policy, "dynamic", content)
    except ExportError as error:
        assert_names_a_layer(error, model)
        assert kind in UNSAID
        # A constant behind a kernel is the cause, not a file of another model.
        assert ("divide" in str(error)) == (kind == "Divide")
        return
    assert kind not in UNSAID
    patterns = [rule["regex"] for rule in rules if rule["regex"].startswith("^")]
    kernels = [c for c in read_graph(student).calls if is_searchable(c.layer)]
    assert len(set(patterns)) == len(patterns) == len(kernels)
    scores, wanted = TFLiteModel(content).predict(X), np.asarray(student(X))
    assert np.abs(scores - wanted).mean() < 0.05 * wanted.std()


@needs_tfmot
def test_scaling_by_a_constant_is_refused_by_name():
    x = inputs = keras.Input((4, 4, 3))
    x = L.Conv2D(3, 1, name="conv")(x) * np.float32(0.5)
    model = keras.Model(inputs, L.Flatten()(x))
    with pytest.raises(ExportError) as caught:
        tfmot.to_tf_keras(model)
    assert_names_a_layer(caught.value, model)
    assert "Multiply" in str(caught.value)
