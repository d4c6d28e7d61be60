"""Risks of outputs of every kind, against Keras."""

import re

import keras
import numpy as np
import pytest

from gmpq_tf.search.judge import Judge
from gmpq_tf.task import TaskError

RNG = np.random.default_rng(0)


def model_of(units, activation):
    inputs = keras.Input((4,))
    return keras.Model(inputs, keras.layers.Dense(units, activation)(inputs))


def outputs_of(units, activation):
    scores = RNG.normal(size=(6, units)).astype("float32") * 2
    if activation == "softmax":
        return np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
    return 1 / (1 + np.exp(-scores)) if activation == "sigmoid" else scores


@pytest.mark.parametrize(
    ("units", "activation", "loss"),
    [
        (5, "softmax", keras.losses.sparse_categorical_crossentropy),
        (5, None, keras.losses.sparse_categorical_crossentropy),
        (1, "sigmoid", keras.losses.binary_crossentropy),
        (3, "sigmoid", keras.losses.binary_crossentropy),
    ],
)
def test_task_and_divergence_are_those_of_keras(units, activation, loss):
    own, teacher = outputs_of(units, activation), outputs_of(units, activation)
    classes = loss is keras.losses.sparse_categorical_crossentropy
    labels = RNG.integers(0, 5, 6) if classes else RNG.integers(0, 2, (6, units))
    judge = Judge(model_of(units, activation), [teacher], labels)
    options = {"from_logits": activation is None}
    wanted = loss(labels, own, **options)
    np.testing.assert_allclose(judge.task([own], judge.targets), wanted, rtol=1e-5)
    if classes:
        pair = [
            o if activation else keras.ops.softmax(o).numpy() for o in (teacher, own)
        ]
        wanted = keras.losses.kl_divergence(*pair)
    else:
        wanted = loss(teacher, own) - loss(teacher, teacher)
    np.testing.assert_allclose(
        judge.divergence([own], [teacher]), wanted, rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(judge.divergence([own], [own]), 0, atol=1e-6)
    # What `fit` is given says the same of a batch.
    mean = float(np.mean(judge.task([own], judge.targets)))
    assert float(judge.keras_loss()(labels, own)) == pytest.approx(mean, rel=1e-5)


def test_numbers_are_compared_by_their_variance():
    inputs = keras.Input((4, 4, 3))
    model = keras.Model(inputs, keras.layers.Conv2D(3, 1)(inputs))
    teacher = RNG.normal(size=(5, 4, 4, 3)).astype("float32") * 7
    judge = Judge(model, [teacher])
    assert not judge.labelled
    assert not judge.decides
    found = judge.divergence([teacher + 7], [teacher])
    np.testing.assert_allclose(found, 49 / teacher.var(), rtol=1e-5)


@pytest.mark.parametrize("shape", [(2, 2), (4, 1), (1, 4)])
def test_numbers_of_another_shape_are_not_read_in_another_order(shape):
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Reshape(shape)(inputs))
    scores, labels = RNG.normal(size=(2, 6, *shape)).astype("float32")
    judge = Judge(model, [scores], labels, "numbers")
    gaps = np.square(scores - labels).reshape(6, -1).mean(axis=1) / scores.var()
    np.testing.assert_allclose(judge.task([scores], judge.targets), gaps, rtol=1e-5)
    Judge(model, [scores], labels[..., None], "numbers")
    for other in {(6, 4), (6, 2, 2), (6, 4, 1), (6, 1, 4)} - {labels.shape}:
        if shape[-1] == 1 and other == (6, 4):  # a last axis of 1 may be missing
            Judge(model, [scores], labels.reshape(other), "numbers")
            continue
        said = rf"{re.escape(str(labels.shape))}. Received: labels of shape "
        with pytest.raises(TaskError, match=said + re.escape(str(other))):
            Judge(model, [scores], labels.reshape(other), "numbers")


def test_a_stated_kind_counts():
    teacher, own = outputs_of(3, None), outputs_of(3, None)
    judge = Judge(model_of(3, None), [teacher], None, "numbers")
    wanted = np.mean((teacher - own) ** 2, axis=1) / teacher.var()
    np.testing.assert_allclose(judge.divergence([own], [teacher]), wanted, rtol=1e-5)


def test_several_outputs_are_added():
    inputs = keras.Input((4,))
    heads = [
        keras.layers.Dense(3, name="kind")(inputs),
        keras.layers.Dense(1, "sigmoid", name="alive")(inputs),
    ]
    model = keras.Model(inputs, heads)
    outputs = [outputs_of(3, None), outputs_of(1, "sigmoid")]
    labels = [np.array([0, 1, 2, 0, 1, 2]), np.array([[0], [1], [1], [0], [0], [1]])]
    judge = Judge(model, outputs, labels)
    parts = [
        keras.losses.sparse_categorical_crossentropy(
            labels[0], outputs[0], from_logits=True
        ),
        keras.losses.binary_crossentropy(labels[1], outputs[1]),
    ]
    np.testing.assert_allclose(
        judge.task(outputs, judge.targets), parts[0] + parts[1], rtol=1e-5
    )
    with pytest.raises(TaskError, match="Every output needs labels"):
        Judge(model, outputs, {"kind": labels[0]})
