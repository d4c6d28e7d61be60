import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import gmpq_tf as gmpq
from gmpq_tf.policy import BitwidthPolicy
from gmpq_tf.search.distill import Distiller, soft_cross_entropy

X = np.random.default_rng(0).normal(size=(40, 6)).astype("float32")
Y = (X[:, 0] > 0).astype("int32") + (X[:, 1] > 0)


def classifier(activation="softmax", seed=0, name="model"):
    keras.utils.set_random_seed(seed)
    inputs = x = keras.Input((6,), name="x")
    x = layers.Dense(8, activation="relu", name="hidden")(x)
    x = layers.Dropout(0.5, name="drop")(x) if name == "teacher" else x
    outputs = layers.Dense(3, activation=activation, name="head")(x)
    return keras.Model(inputs, outputs, name=name)


def softmax(z):
    powers = np.exp(z - z.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def logits(model):
    hidden = np.maximum(X @ np.array(model.layers[1].kernel), 0)  # biases are zero
    return hidden @ np.array(model.layers[-1].kernel)


def test_soft_cross_entropy_is_the_divergence():
    scipy = pytest.importorskip("scipy.stats")
    t, s = np.random.default_rng(1).normal(size=(2, 7, 5)).astype("float32")
    expected = scipy.entropy(softmax(t), softmax(s), axis=-1).mean()
    found = soft_cross_entropy(tf.constant(t), tf.constant(s))
    assert float(found) == pytest.approx(expected, rel=1e-5)
    assert float(soft_cross_entropy(tf.constant(t), tf.constant(t))) == 0


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("activation", ["softmax", None])
def test_reported_loss_is_the_formula(weight, activation):
    student = classifier(activation)
    teacher = classifier(seed=1, name="teacher")
    s, t, temperature = logits(student), logits(teacher), 3.0
    task = -np.log(softmax(s)[np.arange(len(Y)), Y]).mean()
    p, q = softmax(t / temperature), softmax(s / temperature)
    gap = (p * np.log(p / q)).sum(-1).mean()
    distiller = Distiller(student, teacher, weight, temperature)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=activation is None)
    distiller.compile(keras.optimizers.SGD(0.0), loss, jit_compile=False)
    found = distiller.fit(X, Y, batch_size=len(X), verbose=0).history["loss"][0]
    expected = (1 - weight) * task + weight * temperature**2 * gap
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_student_learns_from_the_teacher_alone():
    teacher = classifier(seed=1, name="teacher")
    model = classifier(seed=2)
    student = gmpq.quantize_model(model, BitwidthPolicy.uniform(model, 8, 8))
    gmpq.calibrate(student, [X])
    fixed = teacher.get_weights()

    def disagreement():
        return np.abs(np.array(student(X)) - softmax(logits(teacher))).mean()

    before = disagreement()
    distiller = Distiller(student, teacher, weight=1.0)
    distiller.compile(
        keras.optimizers.Adam(0.03),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        jit_compile=False,
    )
    history = distiller.fit(X, 0 * Y, epochs=30, batch_size=20, verbose=0).history
    assert "accuracy" in history
    assert disagreement() < 0.4 * before
    for weight, old in zip(teacher.get_weights(), fixed, strict=True):
        np.testing.assert_array_equal(weight, old)


def test_evaluate_is_that_of_the_student():
    student, teacher = classifier(), classifier(seed=1, name="teacher")
    distiller = Distiller(student, teacher)
    for model in (distiller, student):
        model.compile(
            loss="sparse_categorical_crossentropy",
            metrics=["accuracy"],
            jit_compile=False,
        )
    np.testing.assert_allclose(
        distiller.evaluate(X, Y, verbose=0),
        student.evaluate(X, Y, verbose=0),
        rtol=1e-5,
    )


def test_only_the_student_is_saved(tmp_path):
    student, teacher = classifier(), classifier(seed=1, name="teacher")
    distiller = Distiller(student, teacher)
    assert len(distiller.weights) == len(student.weights)
    distiller(X)
    distiller.save_weights(tmp_path / "d.weights.h5")
    other = Distiller(classifier(seed=5), teacher)
    other(X)
    other.load_weights(tmp_path / "d.weights.h5")
    np.testing.assert_array_equal(other.student(X), student(X))
    student.save(tmp_path / "s.keras")
    np.testing.assert_array_equal(
        keras.models.load_model(tmp_path / "s.keras")(X), student(X)
    )


@pytest.mark.parametrize("options", [{"weight": 1.5}, {"temperature": 0}])
def test_impossible_options_are_refused(options):
    with pytest.raises(ValueError, match="0 <= weight <= 1 and temperature > 0"):
        Distiller(classifier(), classifier(name="teacher"), **options)


@pytest.mark.parametrize("nested", [False, True])
def test_teacher_and_student_see_one_image(nested):
    """At 8 bits and w = 1 the loss is near 0, unless the teacher sees another image."""
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((8, 8, 1))
    flips = [layers.RandomFlip(seed=1, name="flip"), layers.Rescaling(0.5)]
    for layer in [keras.Sequential(flips)] if nested else flips:
        x = layer(x)
    x = layers.Flatten()(layers.Conv2D(4, 3, activation="relu", name="conv")(x))
    teacher = keras.Model(inputs, layers.Dense(3, name="head")(x))
    head = teacher.get_layer("head")
    head.kernel.assign(4 * head.kernel.numpy())
    images = np.random.default_rng(0).random((64, 8, 8, 1)).astype("float32")
    images[:, :, :4] *= 3
    student = gmpq.quantize_model(
        teacher, BitwidthPolicy(teacher.name, {"conv": (8, 8), "head": (8, 8)})
    )
    gmpq.calibrate(student, images)
    distiller = Distiller(student, teacher, weight=1.0, temperature=1.0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    distiller.compile(keras.optimizers.SGD(0.0), loss, jit_compile=False)
    labels = np.zeros(64, "int32")
    got = distiller.fit(images, labels, batch_size=64, verbose=0).history["loss"][0]
    assert got < 0.01
    moved = distiller._frozen.front(images, training=True)
    assert np.abs(keras.tree.flatten(moved)[0] - images).max() > 0.5
