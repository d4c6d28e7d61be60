"""Frozen BatchNormalization keeps its statistics, however it was frozen."""

import keras
import numpy as np
import pytest
from keras import layers

import gmpq_tf as gmpq
from gmpq_tf.graph import searchable_names
from gmpq_tf.transform.calibrate import CalibrationError

RANDOM = np.random.default_rng(0)
X = RANDOM.uniform(0, 1, (64, 6, 6, 1)).astype("float32")
Y = RANDOM.integers(0, 3, 64)
STATISTICS = ("moving_mean", "moving_variance")


def block(x, name):
    x = layers.Conv2D(4, 3, name=name, padding="same", use_bias=False)(x)
    return layers.ReLU(name=f"{name}_relu")(
        layers.BatchNormalization(name=f"{name}_norm")(x)
    )


def base(name="base"):
    i = keras.Input((6, 6, 1), name=f"{name}_in")
    model = keras.Model(i, block(i, "deep"), name=name)
    norm = model.get_layer("deep_norm")
    norm.moving_mean.assign([0.3, -0.2, 0.1, 0.0])  # of other images
    norm.moving_variance.assign([0.4, 0.5, 0.6, 0.7])
    return model


def finish(x):
    return layers.Dense(3, name="head")(layers.Flatten(name="flat")(block(x, "top")))


def trainable_false():
    inner = base()
    for layer in inner.layers:
        layer.trainable = False
    return keras.Model(inner.inputs, finish(inner.output))


def only_the_norm():
    inner = base()
    inner.get_layer("deep_norm").trainable = False
    return keras.Model(inner.inputs, finish(inner.output))


def nested_frozen():
    inner = base()
    inner.trainable = False
    i = keras.Input((6, 6, 1))
    return keras.Model(i, finish(inner(i)))


def nested_sequential():
    inner = keras.Sequential([keras.Input((6, 6, 1)), base()], name="sequence")
    inner.trainable = False
    i = keras.Input((6, 6, 1))
    return keras.Model(i, finish(inner(i)))


def nested_called_frozen():
    i = keras.Input((6, 6, 1))
    return keras.Model(i, finish(base()(i, training=False)))


def nested_twice_called_frozen():
    i, j = keras.Input((6, 6, 1)), keras.Input((6, 6, 1))
    middle = keras.Model(j, base()(j), name="middle")
    return keras.Model(i, finish(middle(i, training=False)))


def called_frozen():
    x = i = keras.Input((6, 6, 1))
    x = layers.Conv2D(4, 3, name="deep", padding="same", use_bias=False)(x)
    norm = layers.BatchNormalization(name="deep_norm")
    x = norm(x, training=False)
    norm.moving_mean.assign([0.3, -0.2, 0.1, 0.0])
    norm.moving_variance.assign([0.4, 0.5, 0.6, 0.7])
    return keras.Model(i, finish(layers.ReLU()(x)))


WAYS = [
    trainable_false,
    only_the_norm,
    nested_frozen,
    nested_sequential,
    nested_called_frozen,
    nested_twice_called_frozen,
    called_frozen,
]


def quantized(model):
    bits = dict.fromkeys(searchable_names(model), (8, 8))
    student = gmpq.quantize_model(model, gmpq.BitwidthPolicy(model.name, bits))
    gmpq.calibrate(student, X)
    return student


def statistics(model, name):
    return [np.array(getattr(model.get_layer(name), s)) for s in STATISTICS]


@pytest.fixture(params=WAYS, ids=lambda way: way.__name__)
def student(request, tmp_path):
    """Trained for two steps, saved and loaded."""
    keras.utils.set_random_seed(0)
    student = quantized(request.param())
    student.compile(
        keras.optimizers.SGD(1e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
    )
    before = statistics(student, "top_norm")
    student.fit(X, Y, batch_size=32, verbose=0)
    assert np.abs(statistics(student, "top_norm")[1] - before[1]).max() > 0
    student.save(tmp_path / "student.keras")
    return keras.models.load_model(tmp_path / "student.keras")


@pytest.mark.quick_rows(2)
def test_statistics_stay_in_training_and_when_biases_are_rounded(student):
    mean, variance = statistics(student, "deep_norm")
    np.testing.assert_allclose(mean, [0.3, -0.2, 0.1, 0.0])
    np.testing.assert_allclose(variance, [0.4, 0.5, 0.6, 0.7])
    gmpq.snap_biases(student, X)
    moved, kept = statistics(student, "deep_norm")
    np.testing.assert_array_equal(kept, variance)
    quantizer = student.get_layer("deep").kernel_quantizer
    unit = np.max(np.asarray(quantizer.step(student.get_layer("deep").kernel))) / 255
    assert 0 < np.abs(moved - mean).max() <= unit  # rounded all the same
    # Those of the layer that is not frozen are measured, in stock Keras's way.
    values = keras.Model(student.inputs, student.get_layer("top").output)([X])
    found = statistics(student, "top_norm")[1]
    np.testing.assert_allclose(found, np.var(values, axis=(0, 1, 2)), rtol=1e-3)


def test_a_student_may_be_frozen_later():
    student = quantized(nested_frozen())
    student.get_layer("top_norm").trainable = False
    before = statistics(student, "top_norm")[1]
    gmpq.snap_biases(student, X)
    np.testing.assert_array_equal(statistics(student, "top_norm")[1], before)


def test_a_search_keeps_them_too():
    model = nested_called_frozen()
    search = gmpq.PolicySearch(model, bit_ops_budget=None, eta=0.0)
    search.compile("sgd", "sgd", "sparse_categorical_crossentropy", jit_compile=False)
    search.fit(X, Y, batch_size=64, epochs=1, verbose=0)
    np.testing.assert_allclose(
        statistics(search.hypernet, "deep_norm")[1], [0.4, 0.5, 0.6, 0.7]
    )


def test_statistics_of_other_images_are_named():
    model = keras.Model((i := keras.Input((6, 6, 1))), finish(i))
    student = quantized(model)
    with pytest.warns(UserWarning, match="far from"):  # from the initial 0 and 1
        gmpq.snap_biases(student, X)
    with pytest.warns(UserWarning, match=r"far from those of training: top_norm\."):
        gmpq.snap_biases(student, X[:1] * 0.02)


def test_only_calibrated_students_are_rounded():
    model = nested_frozen()
    bits = dict.fromkeys(searchable_names(model), (8, 8))
    student = gmpq.quantize_model(model, gmpq.BitwidthPolicy(model.name, bits))
    with pytest.raises(CalibrationError, match="set from data before rounding"):
        gmpq.snap_biases(student)
    hypernet = gmpq.build_hypernet(model)
    gmpq.calibrate(hypernet, X)
    with pytest.raises(CalibrationError, match="a hypernet"):
        gmpq.snap_biases(hypernet)
    with pytest.raises(CalibrationError, match="without quantizers"):
        gmpq.snap_biases(model)
