"""Grad-CAM against the gradient of the whole network, computed with stock Keras."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from gmpq_tf.attribution import (
    are_classes,
    attribution_map,
    grad_cam,
    labels_to_classes,
    split_head,
)
from gmpq_tf.attribution.grad_cam import channel_importance
from gmpq_tf.attribution.rank import attribution_ranks

layers = keras.layers


def gap_classifier() -> tuple[keras.Model, str]:
    x = inputs = keras.Input((12, 12, 3))
    x = layers.Conv2D(6, 3, padding="same", activation="relu")(x)
    x = layers.Conv2D(5, 3, strides=2, activation="relu", name="feature")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(4)(x)), "feature"


def nonlinear_head() -> tuple[keras.Model, str]:
    x = inputs = keras.Input((10, 8, 3))
    x = layers.Conv2D(6, 3, activation="relu", name="feature")(x)
    x = layers.Flatten()(x)
    x = layers.Dense(7, activation="tanh")(x)
    x = layers.Dense(6, activation="relu")(x)
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(x)), "feature"


def residual() -> tuple[keras.Model, str]:
    x = inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(4, 3, padding="same")(x)
    x = layers.BatchNormalization()(x)
    y = layers.Conv2D(4, 3, padding="same", activation="relu")(x)
    x = layers.Add()([x, y])
    x = layers.ReLU(name="feature")(x)
    x = layers.AveragePooling2D(8)(x)
    x = layers.Flatten()(x)
    x = layers.Dense(5)(x)
    return keras.Model(inputs, layers.Softmax()(x)), "feature"


MODELS = [gap_classifier, nonlinear_head, residual]


def full_network_maps(
    model: keras.Model, feature: str, x: np.ndarray, classes: np.ndarray
) -> np.ndarray:
    """Eq. 3-4 with the score differentiated through one tape over the whole model."""
    tapped = keras.Model(model.inputs, [model.get_layer(feature).output, model.output])
    with tf.GradientTape() as tape:
        a, output = tapped(x, training=False)
        if model.layers[-1].name.startswith("softmax"):
            # log p_t differs from the logit by log sum exp; undo it through the output
            output = _logits(model, a, feature)
        elif getattr(model.layers[-1], "activation", None) is keras.activations.softmax:
            output = _logits(model, a, feature)
        score = tf.gather(output, classes, batch_dims=1)
    gradient = tape.gradient(score, a).numpy()
    alpha = gradient.mean((1, 2), keepdims=True)
    return np.maximum((alpha * a.numpy()).sum(-1), 0)


def _logits(model: keras.Model, a: tf.Tensor, feature: str) -> tf.Tensor:
    """The scores before the softmax, layer by layer after the feature map."""
    names = [layer.name for layer in model.layers]
    for layer in model.layers[names.index(feature) + 1 :]:
        if isinstance(layer, layers.Softmax):
            break
        if getattr(layer, "activation", None) is keras.activations.softmax:
            return tf.matmul(a, layer.kernel) + layer.bias
        a = layer(a)
    return a


@pytest.mark.parametrize("make", MODELS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("predicted", [False, True])
def test_head_only_equals_full_network(make, predicted):
    model, feature = make()
    rng = np.random.default_rng(0)
    x = rng.standard_normal((6, *model.input_shape[1:])).astype("float32")
    output = model(x, training=False).numpy()
    labels = rng.integers(0, output.shape[-1], len(x))
    backbone, head = split_head(model)
    maps, (_, head_output) = grad_cam(
        head,
        backbone(x, training=False),
        None if predicted else tf.constant(labels),
        training=False,
    )
    classes = output.argmax(-1) if predicted else labels
    expected = full_network_maps(model, feature, x, classes)
    assert expected.max() > 0
    np.testing.assert_allclose(maps, expected, atol=1e-5)
    np.testing.assert_allclose(head_output, output, atol=1e-6)


def test_equations_3_and_4_in_numpy():
    rng = np.random.default_rng(1)
    a, g = rng.standard_normal((2, 2, 3, 5, 4)).astype("float32")
    alpha = g.sum((1, 2)) / 15
    np.testing.assert_allclose(channel_importance(g), alpha, atol=1e-6)
    expected = np.maximum(np.einsum("bhwc,bc->bhw", a, alpha), 0)
    np.testing.assert_allclose(attribution_map(a, g), expected, atol=1e-6)


def test_lines_are_images_of_one_row():
    """Weights are means over the steps, and the map has one row of them."""
    rng = np.random.default_rng(3)
    a, g = rng.standard_normal((2, 2, 7, 4)).astype("float32")
    expected = np.maximum(np.einsum("btc,bc->bt", a, g.mean(1)), 0)
    maps = attribution_map(a, g)
    assert maps.shape == (2, 1, 7)
    np.testing.assert_allclose(maps[:, 0], expected, atol=1e-6)
    np.testing.assert_array_equal(maps, attribution_map(a[:, None], g[:, None]))
    ranks = attribution_ranks(maps).numpy()
    np.testing.assert_array_equal(np.sort(ranks), np.tile(np.arange(1, 8), (2, 1)))


def test_maps_differentiate_a_second_time():
    """The gradient of a function of the map against central differences in float64."""
    rng = np.random.default_rng(2)
    x = tf.constant(rng.standard_normal((2, 4, 4, 3)))
    w1, w2 = (tf.constant(rng.standard_normal(s)) for s in ((48, 5), (5, 3)))

    def head(feature, training):
        hidden = tf.tanh(tf.reshape(feature, [2, -1]) @ w1)
        return hidden @ w2, hidden @ w2

    def loss(feature):
        maps, _ = grad_cam(head, feature, tf.constant([0, 2]), training=True)
        return tf.reduce_sum(maps**2)

    with tf.GradientTape() as tape:
        tape.watch(x)
        value = loss(x)
    gradient = tape.gradient(value, x)
    direction = tf.constant(rng.standard_normal(x.shape))
    h = 1e-5
    numeric = (loss(x + h * direction) - loss(x - h * direction)) / (2 * h)
    np.testing.assert_allclose(
        tf.reduce_sum(gradient * direction), numeric, rtol=1e-4, atol=1e-8
    )


@pytest.mark.parametrize(
    "labels",
    [[2, 0], [[2], [0]], [[0, 0, 1], [1, 0, 0]]],
    ids=["flat", "column", "hot"],
)
def test_labels_to_classes(labels):
    assert labels_to_classes(np.array(labels), 3).numpy().tolist() == [2, 0]


def test_dead_feature_maps_have_maps_and_gradients_of_zero():
    feature = tf.zeros([2, 3, 4, 5])
    with tf.GradientTape() as tape:
        tape.watch(feature)
        maps = attribution_map(feature, tf.ones_like(feature))
    np.testing.assert_array_equal(maps, np.zeros((2, 3, 4)))
    # ReLU's slope at 0 is 0: a dead layer is not revived by its attribution.
    np.testing.assert_array_equal(tape.gradient(maps, feature), np.zeros((2, 3, 4, 5)))


def test_classes_that_do_not_exist_have_maps_of_zero():
    model, _ = gap_classifier()
    backbone, head = split_head(model)
    x = np.random.default_rng(0).random((3, 12, 12, 3)).astype("float32")
    classes = labels_to_classes(np.array([7, -1, 2]), 4)
    maps, _ = grad_cam(head, backbone(x), classes, training=False)
    np.testing.assert_array_equal(maps[:2], np.zeros(maps[:2].shape))
    assert np.isfinite(maps[2]).all()


def test_soft_and_broken_one_hot_labels_are_their_first_largest():
    rows = [[0.2, 0.5, 0.3], [-3.0, -1.0, -2.0], [0.0, 0.0, 0.0], [0.4, 0.2, 0.4]]
    got = labels_to_classes(np.array(rows, "float32"), 3)
    np.testing.assert_array_equal(got, np.argmax(rows, axis=1))


def test_narrow_floats_keep_small_gradients():
    """In float16 their mean over the pixels would be 0."""
    feature = np.full((1, 16, 16, 2), 100.0)
    gradient = np.full((1, 16, 16, 2), 2.0**-20)
    maps = attribution_map(*(tf.constant(v, tf.float16) for v in (feature, gradient)))
    assert maps.dtype == "float32"
    np.testing.assert_allclose(maps, np.full((1, 16, 16), 200 * 2.0**-20))


def two_class_model(activation):
    """Dense(1) after a bright and a dark channel; and the logit's own function."""
    inputs = keras.Input((4, 4, 2))
    x = layers.Conv2D(2, 1, use_bias=False, name="feature")(inputs)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dense(1, name="score")(x)
    if activation == "layer":
        x = layers.Activation("sigmoid")(x)
    elif activation == "inside":
        x = layers.Dense(1, "sigmoid")(x)
    return keras.Model(inputs, x)


LABELS_OF_TWO = {
    "integers": np.array([1, 0, 1, 0]),
    "floats": np.array([1.0, 0.0, 1.0, 0.0], "float32"),
    "booleans": np.array([True, False, True, False]),
    "bytes": np.array([1, 0, 1, 0], "uint8"),
    "signs": np.array([1, -1, 1, -1]),
    "smoothed": np.array([0.95, 0.05, 0.9, 0.1]),
}


@pytest.mark.parametrize("column", [False, True])
@pytest.mark.parametrize("kind", list(LABELS_OF_TWO))
def test_labels_of_two_classes(kind, column):
    labels = LABELS_OF_TWO[kind]
    got = labels_to_classes(labels[:, None] if column else labels, 1)
    assert got.numpy().tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize("activation", ["none", "layer", "inside"])
def test_score_of_one_logit_has_the_sign_of_the_class(activation):
    """Equations 3 and 4 by hand: GAP and Dense make alpha a product of weights."""
    model = two_class_model(activation)
    rng = np.random.default_rng(2)
    for weight in model.weights:
        weight.assign(rng.normal(size=weight.shape))
    x = rng.random((4, 4, 4, 2)).astype("float32")
    backbone, head = split_head(model)
    feature = backbone(x)
    dense = [layer for layer in model.layers if hasattr(layer, "units")]
    alpha = functools.reduce(np.matmul, [layer.kernel.numpy() for layer in dense])
    logit_slope = np.einsum("bhwc,c->bhw", feature, alpha[:, 0]) / 16
    labels = np.array([1, 0, 1, 0])
    sign = np.where(labels, 1, -1)[:, None, None]
    maps, (logits, output) = grad_cam(
        head, feature, labels_to_classes(labels, 1), training=False
    )
    np.testing.assert_allclose(maps, np.maximum(sign * logit_slope, 0), atol=1e-6)
    assert maps.numpy().max() > 0
    if activation != "none":  # the logit, not the probability, is attributed
        np.testing.assert_allclose(output, 1 / (1 + np.exp(-logits)), atol=1e-6)


def test_predicted_class_of_one_logit_is_its_sign():
    model = two_class_model("none")
    rng = np.random.default_rng(3)
    x = rng.normal(size=(8, 4, 4, 2)).astype("float32")
    backbone, head = split_head(model)
    feature = backbone(x)
    signs = (head(feature)[0].numpy()[:, 0] > 0).astype(int)
    assert 0 < signs.sum() < 8
    expected, _ = grad_cam(head, feature, tf.constant(signs), training=False)
    got, _ = grad_cam(head, feature, None, training=False)
    np.testing.assert_array_equal(got, expected)


def test_independent_labels_attribute_the_sum_of_their_scores():
    model, _ = gap_classifier()
    backbone, head = split_head(model)
    feature = backbone(np.random.default_rng(0).random((3, 12, 12, 3), "float32"))
    rows = np.array([[1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]], "float32")
    classes = labels_to_classes(rows, 4, independent=True)
    maps, _ = grad_cam(head, feature, classes, training=False)
    with tf.GradientTape() as tape:
        tape.watch(feature)
        logits = head(feature)[0]
        score = logits[0, 0] + logits[0, 2] + logits[1, 1]
    expected = attribution_map(feature, tape.gradient(score, feature))
    np.testing.assert_allclose(maps, expected, atol=1e-6)
    assert not maps[2].numpy().any()
    one, _ = grad_cam(head, feature, tf.constant([0, 1, 0]), training=False)
    np.testing.assert_allclose(maps[1], one[1], atol=1e-6)  # one label: that class


@pytest.mark.parametrize(
    ("labels", "scores", "exist"),
    [
        ([7, -1, 2], 4, [False, False, True]),
        ([0.5, 1.0, np.nan], 4, [False, True, False]),
        ([2.0, -1.0, 0.0], 1, [False, True, True]),
        ([2, 37, -2], 1, [False, False, False]),
        ([[1, 1], [0, 0], [0, 1]], 2, [True, False, True]),
    ],
)
def test_which_labels_are_classes(labels, scores, exist):
    classes = labels_to_classes(np.array(labels), scores, independent=True)
    assert are_classes(classes, scores).numpy().tolist() == exist


@pytest.mark.parametrize(
    ("shape", "scores"), [((4, 2), 1), ((4, 3), 5), ((4, 3, 3), 3)]
)
def test_labels_of_another_shape_are_refused(shape, scores):
    with pytest.raises(ValueError, match=r"Labels must be class numbers .* Received"):
        labels_to_classes(np.zeros(shape), scores)
