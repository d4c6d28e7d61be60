"""Against Keras's own layer, which computes the same in a dozen passes."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import gmpq_tf as gmpq
from gmpq_tf.graph import layer_kind
from gmpq_tf.layers.batch_norm import BatchNormalization, fused_norm

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(0.7, 2.0, (5, 4, 6, 3)).astype("float32")
UPSTREAM = RANDOM.standard_normal(X.shape).astype("float32")


def pair(**options):
    """A stock layer and one of ours, of the same weights."""
    shape = options.pop("shape", X.shape)
    stock = keras.layers.BatchNormalization(name="norm", **options)
    ours = fused_norm(stock)
    stock.build(shape)
    ours.build(shape)
    random = np.random.default_rng(1)
    values = [random.uniform(0.5, 2.0, w.shape) for w in stock.weights]
    for layer in (stock, ours):
        layer.set_weights(values)
    return stock, ours


def trained(layer, x, upstream):
    """Output, gradients and moving statistics of one call in training."""
    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, training=True)
    sources = [x, *(v.value for v in layer.trainable_variables)]
    slopes = tape.gradient(y, sources, output_gradients=tf.cast(upstream, y.dtype))
    return [np.array(v, "float64") for v in (y, *slopes, *layer.weights)]


def fused_kernels(layer, shape=X.shape, dtype=tf.float32, **kwargs):
    spec = tf.TensorSpec(shape, dtype)
    call = tf.function(lambda x: layer(x, training=True, **kwargs))
    graph = call.get_concrete_function(spec).graph
    return [o.type for o in graph.get_operations()].count("FusedBatchNormV3")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scale": False},
        {"center": False},
        {"momentum": 0.9, "epsilon": 2e-5},
        {"axis": 3},
        {"dtype": "mixed_bfloat16"},
    ],
)
def test_trains_as_the_stock_layer(options):
    stock, ours = pair(**options)
    assert fused_kernels(ours) == 1 and fused_kernels(stock) == 0
    tolerance = 1e-2 if "dtype" in options else 2e-5
    for ref, got in zip(
        trained(stock, X, UPSTREAM), trained(ours, X, UPSTREAM), strict=True
    ):
        np.testing.assert_allclose(got, ref, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("images", [1, 2])
def test_moving_variance_of_tiny_batches(images):
    """Of one value the variance is 0, whatever the kernel divides by."""
    x = RANDOM.standard_normal((images, 1, 1, 3)).astype("float32")
    stock, ours = pair(shape=x.shape)
    for ref, got in zip(trained(stock, x, x), trained(ours, x, x), strict=True):
        np.testing.assert_allclose(got, ref, rtol=1e-4, atol=1e-5)


def twice(normalize, x, upstream):
    """Gradient of a gradient through a layer, as Grad-CAM takes it of a head."""
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            y = tf.reduce_sum(tf.square(normalize(x)) * upstream)
        slope = inner.gradient(y, x)
    return outer.gradient(slope, x, output_gradients=upstream)


def test_second_derivatives():
    """Against the definition: Keras's layer holds the mean fixed in the variance."""
    _, ours = pair()
    gamma, beta = (np.array(v, "float64") for v in (ours.gamma, ours.beta))

    def definition(x):
        mean = tf.reduce_mean(x, (0, 1, 2))
        variance = tf.reduce_mean(tf.square(x - mean), (0, 1, 2))
        return gamma * (x - mean) / tf.sqrt(variance + ours.epsilon) + beta

    ref = twice(definition, tf.constant(X, tf.float64), tf.cast(UPSTREAM, tf.float64))
    got = twice(lambda x: ours(x, training=True), tf.constant(X), UPSTREAM)
    np.testing.assert_allclose(got, ref, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({"epsilon": 1e-6}, X.shape),
        ({"axis": 1}, X.shape),
        ({"synchronized": True}, X.shape),
        ({"trainable": False}, X.shape),
        ({"dtype": "float64"}, X.shape),
        ({}, (5, 3)),
        ({}, (5, 4, 3)),
    ],
)
def test_what_the_kernel_cannot_do_is_left_to_keras(options, shape):
    stock, ours = pair(shape=shape, **options)
    dtype = options.get("dtype", "float32")
    assert fused_kernels(ours, shape, tf.as_dtype(dtype)) == 0
    x = RANDOM.standard_normal(shape).astype(dtype)
    for ref, got in zip(trained(stock, x, x), trained(ours, x, x), strict=True):
        np.testing.assert_array_equal(got, ref)


def test_masks_are_left_to_keras():
    stock, ours = pair()
    mask = tf.constant(RANDOM.random(X.shape[:3]) < 0.5)
    expected = stock(X, training=True, mask=mask)
    np.testing.assert_array_equal(ours(X, training=True, mask=mask), expected)


def test_inference_is_keras_own():
    stock, ours = pair()
    np.testing.assert_array_equal(ours(X), stock(X))


def small():
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, use_bias=False, name="conv")(inputs)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.ReLU()(x))
    return keras.Model(inputs, keras.layers.Dense(3, name="head")(x))


def test_hypernets_train_with_it_and_students_keep_keras_layer():
    model = small()
    hypernet = gmpq.build_hypernet(model)
    norm = hypernet.get_layer("norm")
    assert type(norm) is BatchNormalization and layer_kind(norm) == "BatchNormalization"
    student = gmpq.quantize_model(model, gmpq.BitwidthPolicy.uniform(model, 4, 4))
    assert type(student.get_layer("norm")) is keras.layers.BatchNormalization


def test_weights_go_between_files_of_both(tmp_path):
    """Files of hypernets of before hold the stock layer."""
    for source, target in (pair(), pair()[::-1]):
        first = keras.Sequential([keras.Input(X.shape[1:]), source])
        second = keras.Sequential([keras.Input(X.shape[1:]), target])
        first.save_weights(tmp_path / "m.weights.h5")
        second.set_weights([0 * w for w in second.get_weights()])
        second.load_weights(tmp_path / "m.weights.h5")
        np.testing.assert_array_equal(second(X), first(X))


def test_keras_file_round_trip(tmp_path):
    hypernet = gmpq.build_hypernet(small())
    hypernet.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    assert type(again.get_layer("norm")) is BatchNormalization
    x = RANDOM.standard_normal((2, 8, 8, 3)).astype("float32")
    np.testing.assert_array_equal(again(x), hypernet(x))
