"""Training ranges that no data have set is refused, whoever trains."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import gmpq_tf as gmpq
from gmpq_tf.graph import searchable_names
from gmpq_tf.search.distill import Distiller

X = np.random.default_rng(0).uniform(0, 1, (8, 5, 5, 1)).astype("float32")
Y = np.arange(8) % 3
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
REFUSED = r"set from data before training.*calibrate\(model, dataset\) first"


def network():
    i = keras.Input((5, 5, 1))
    x = layers.BatchNormalization()(layers.Conv2D(2, 3)(i))
    return keras.Model(i, layers.Dense(3)(layers.Flatten()(layers.ReLU()(x))))


def student():
    model = network()
    bits = dict.fromkeys(searchable_names(model), (3, 3))
    return gmpq.quantize_model(model, gmpq.BitwidthPolicy(model.name, bits))


def fit(model, **kwargs):
    model.compile("sgd", loss=LOSS, jit_compile=False, **kwargs)
    model.fit(X, Y, verbose=0)


def own_loop(model, function):
    def step():
        with tf.GradientTape() as tape:
            loss = LOSS(Y, model(X, training=True))
        return tape.gradient(loss, model.trainable_variables)

    (tf.function(step) if function else step)()


def inside_another(model):
    i = keras.Input((5, 5, 1))
    fit(keras.Model(i, model(i)))


TRAININGS = {
    "fit": fit,
    "fit eagerly": lambda model: fit(model, run_eagerly=True),
    "tape": lambda model: own_loop(model, False),
    "tf.function": lambda model: own_loop(model, True),
    "distiller": lambda model: fit(Distiller(model, network())),
    "inside another": inside_another,
    "train_on_batch": lambda model: (
        model.compile("sgd", loss=LOSS, jit_compile=False),
        model.train_on_batch(X, Y),
    ),
}


@pytest.mark.quick_rows(3)
@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("training", TRAININGS)
def test_a_student_must_be_calibrated_first(training, loaded, tmp_path):
    model = student()
    if loaded:
        model.save(tmp_path / "student.keras")
        model = keras.models.load_model(tmp_path / "student.keras")
    before = model.get_weights()
    with pytest.raises(ValueError, match=REFUSED):
        TRAININGS[training](model)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    gmpq.calibrate(model, X)
    TRAININGS[training](model)  # the refusal leaves nothing behind


def test_a_hypernet_in_ones_own_loop_too():
    hypernet = gmpq.build_hypernet(network())
    with pytest.raises(ValueError, match=REFUSED):
        own_loop(hypernet, True)


def test_looking_at_it_is_no_training():
    model = student()
    model.compile(loss=LOSS, jit_compile=False)
    assert model.predict(X, verbose=0).shape == (8, 3)
    assert np.isfinite(model.evaluate(X, Y, verbose=0))


def test_layers_of_ones_own_train_as_they_are():
    layer = gmpq.layers.QuantDense(2, input_quantizer=gmpq.quantizers.InputQuantizer(4))
    assert layer(X.reshape(8, 25), training=True).shape == (8, 2)
