"""A step is traced once, whatever the data come in, and computes the same."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from gmpq_tf.first_trace import build_before_tracing

X = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
Y = np.arange(8) % 3


class Counted(keras.Model):
    """Two layers that count how often their training step is traced."""

    def __init__(self):
        super().__init__()
        self.hidden, self.out = keras.layers.Dense(5), keras.layers.Dense(3)
        self.traces = 0

    def call(self, inputs):
        return self.out(self.hidden(inputs))

    def train_step(self, data):
        self.traces += 1
        return super().train_step(data)


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 2

    def __getitem__(self, number):
        return X[4 * number : 4 * number + 4], Y[4 * number : 4 * number + 4]


def generator():
    while True:
        yield X, Y


SOURCES = {
    "arrays": lambda: (X, Y),
    "tf.data": lambda: (tf.data.Dataset.from_tensor_slices((X, Y)).batch(4), None),
    "PyDataset": lambda: (Batches(workers=1), None),
}


def counted():
    keras.utils.set_random_seed(0)
    model = Counted()
    model(X[:1])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, metrics=["accuracy"], jit_compile=False)
    model.optimizer.build(model.trainable_variables)
    return model


def history(model, x, y):
    return model.fit(x, y, batch_size=4, epochs=2, verbose=0, shuffle=False).history


@pytest.mark.parametrize("source", SOURCES)
def test_one_trace_and_the_same_history(source):
    expected = counted()
    wanted = history(expected, *SOURCES[source]())
    model = counted()
    build_before_tracing(model, *SOURCES[source]())
    assert history(model, *SOURCES[source]()) == wanted
    assert (expected.traces, model.traces) == (2, 1)


@pytest.mark.parametrize("data", [(generator(), None), (X, None), (X, Y.tolist())])
def test_other_data_are_left_as_they_are(data):
    build_before_tracing(counted(), *data)
    np.testing.assert_array_equal(next(generator())[1], Y)


class Seen(keras.layers.Layer):
    """Passes its input on, and counts how often it is called."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def call(self, inputs):
        self.calls += 1
        return inputs


def functional(structure):
    keras.utils.set_random_seed(0)
    inputs, seen = keras.Input((4,)), Seen()
    hidden = keras.layers.Dense(5)(seen(inputs))
    model = keras.Model(inputs, structure(keras.layers.Dense(3)(hidden)))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, metrics=["accuracy"], jit_compile=False)
    return model, seen


@pytest.mark.parametrize(
    "structure", [lambda y: y, lambda y: [y], lambda y: {"scores": y}]
)
def test_a_functional_model_is_not_traced_for_its_shapes(structure):
    data = (X, structure(Y))
    expected, _ = functional(structure)
    wanted = history(expected, *data)
    model, seen = functional(structure)
    before = seen.calls
    build_before_tracing(model, *data)
    assert seen.calls == before
    assert model._compile_metrics.built and model._compile_loss.built
    assert history(model, *data) == wanted
    assert seen.calls == before + 1


def test_weights_of_images_are_known_too():
    model, seen = functional(lambda y: y)
    weighted = tf.data.Dataset.from_tensor_slices((X, Y, np.ones(8, "float32")))
    build_before_tracing(model, weighted.batch(4))
    before = seen.calls
    model.fit(weighted.batch(4), verbose=0)
    assert seen.calls == before + 1
