"""Grad-CAM of detectors of two stages: against one tape, and in a search."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import gmpq_tf as gmpq
from gmpq_tf.attribution import are_classes, grad_cam, labels_to_objects, split_head
from gmpq_tf.attribution.grad_cam import region_scores
from gmpq_tf.detection.boxes import iou
from gmpq_tf.detection.region_layers import (
    RegionAlign,
    RegionOutputs,
    RegionProposal,
    RegionSearch,
)
from gmpq_tf.detection.regions import sampled
from gmpq_tf.graph import GraphError
from gmpq_tf.task.tasks import task_of

layers = keras.layers


def toy(seed=0):
    """Two convolutions, regions of four anchors a place, a dense head; two classes."""
    keras.utils.set_random_seed(seed)
    x = inputs = keras.Input((32, 32, 3), name="image")
    for number in range(2):
        x = layers.Conv2D(4, 3, 2, padding="same", name=f"conv{number}")(x)
        x = layers.ReLU(name=f"relu{number}")(layers.BatchNormalization()(x))
    search = RegionSearch((8, 8), (32, 32), 4.0, (2.0, 4.0), (0.5, 2.0), regions=12)
    y = layers.ReLU(name="rpn_relu")(layers.Conv2D(4, 1, name="rpn_conv")(x))
    rows = [
        layers.Reshape((-1, width), name=f"{name}_rows")(
            layers.Conv2D(4 * width, 1, name=name)(y)
        )
        for name, width in (("rpn_scores", 1), ("rpn_boxes", 4))
    ]
    corners = RegionProposal(search, name="regions")(*rows)
    z = RegionAlign(12, 4, name="align")(x, corners)
    z = layers.Flatten()(layers.ReLU(name="roi_relu")(layers.Conv2D(4, 3)(z)))
    scores, boxes = (layers.Dense(n, name=f"roi{n}")(z) for n in (3, 12))
    objects = RegionOutputs(name="objects")(corners, scores, boxes)
    outputs = {"rpn_scores": rows[0], "rpn_boxes": rows[1], "objects": objects}
    return keras.Model(inputs, outputs, name="toy")


def examples(model, images=3, seed=0):
    """Images, and encoded labels: two regions of each, but no object in the last."""
    rng = np.random.default_rng(seed)
    x = tf.constant(rng.uniform(0, 1, (images, 32, 32, 3)), tf.float32)
    regions = keras.Model(model.inputs, model.get_layer("regions").output)
    boxes = tf.gather(regions(x, training=False), [0, 5], axis=1)
    classes = rng.integers(0, 2, (images, 2))
    classes[-1] = -1
    labels = {"boxes": boxes, "classes": tf.constant(classes, tf.int32)}
    return x, task_of(model).encode(labels)


def test_maps_are_those_of_one_tape_over_the_whole_network():
    model = toy()
    x, labels = examples(model)
    backbone, head = split_head(model)
    assert backbone.outputs[0]._keras_history.operation.name == "relu1"
    feature = backbone(x, training=False)
    maps, (_, output) = grad_cam(head, feature, labels["objects"], training=False)
    read = [model.get_layer(n).output for n in ("relu1", "regions", "roi3")]
    with tf.GradientTape() as tape:
        a, corners, scores = keras.Model(model.inputs, read)(x, training=False)
        scores, total = tf.reshape(scores, (3, 12, 3)), 0.0
        for image, known in enumerate(labels["objects"].numpy()):
            real = known[known[:, 4] > 0]
            if not len(real):
                continue
            overlap = iou(corners[image].numpy(), real[:, :4])
            found = np.flatnonzero(overlap.max(1) >= 0.5)
            assert len(found)
            own = real[overlap.argmax(1)[found], 4].astype(int)
            picked = [scores[image, r, c] for r, c in zip(found, own, strict=True)]
            total += tf.add_n(picked) / len(found)
    alpha = tape.gradient(total, a).numpy().mean((1, 2), keepdims=True)
    expected = np.maximum((alpha * a.numpy()).sum(-1), 0)
    assert expected[:2].max() > 0 and not expected[-1].any()
    np.testing.assert_allclose(maps, expected, atol=1e-6)
    whole = model(x, training=False)
    for name, value in whole.items():
        np.testing.assert_allclose(output[name], value, atol=1e-5)
    exist = are_classes(labels["objects"], 3).numpy()
    assert exist.tolist() == [True, True, False]


def test_predicted_classes_are_those_of_real_regions():
    corners = [[0.0, 0, 0.5, 0.5], [0.2, 0.2, 0.8, 0.9], [0, 0, 0, 0]]
    scores = [[1.0, 4, 2], [5, 1, 0], [0, 0, 9]]  # an object, background, padding
    rows = np.concatenate([corners, scores, np.zeros((3, 12))], -1)
    found = region_scores(tf.constant(rows[None], tf.float32), None)
    np.testing.assert_allclose(found, [4.0])


def test_features_are_differentiated_twice():
    rng = np.random.default_rng(0)
    features = tf.constant(rng.normal(size=(2, 5, 6, 3)), tf.float32)
    boxes = tf.constant(rng.uniform(0, 1, (4, 4)), tf.float32)
    images = tf.constant([0, 1, 1, 0])
    weights = tf.Variable(rng.normal(size=(4, 2, 2, 3)), dtype=tf.float32)
    direction = tf.constant(rng.normal(size=features.shape), tf.float32)
    with tf.GradientTape() as outer:
        with tf.GradientTape() as tape:
            tape.watch(features)
            total = tf.reduce_sum(weights * sampled(features, boxes, images, 2))
        slope = tape.gradient(total, features)
        along = tf.reduce_sum(slope * direction)
    # Linear: the slope along a direction is the sum of its samples.
    plain = tf.image.crop_and_resize(direction, boxes, images, [2, 2])
    np.testing.assert_allclose(along, tf.reduce_sum(weights * plain), rtol=1e-5)
    np.testing.assert_allclose(outer.gradient(along, weights), plain, atol=1e-6)


def test_a_map_that_no_region_is_cut_out_of_is_refused():
    model = toy()
    backbone, _ = split_head(model, "relu0")
    assert backbone.outputs[0]._keras_history.operation.name == "relu0"
    for name in ("rpn_relu", "roi_relu"):
        with pytest.raises(GraphError, match=f"regions are cut out of.*{name}"):
            split_head(model, name)
    for wrong in ({"boxes": 1}, tf.zeros([2, 3]), None):
        with pytest.raises(ValueError, match="objects of each image"):
            labels_to_objects(wrong)


@pytest.mark.quick_rows(1)
@pytest.mark.parametrize("attribution_class", ["label", "predicted"])
def test_the_risk_guides_layers_before_the_map(attribution_class):
    """Gradients of R_G alone, through regions, reach the backbone's importances."""
    model = toy()
    x, labels = examples(model, images=2)
    search = gmpq.PolicySearch(
        model,
        gmpq.SearchSpace((2, 8), (2, 8), pinned={}),
        eta=1.0,
        attribution_class=attribution_class,
    )
    search.calibrate(tf.data.Dataset.from_tensors(x))
    stem, guide = search.hypernet.get_layer("conv0"), search.generalization
    teacher = guide.teacher_maps(x, labels)
    with tf.GradientTape() as tape:
        output, maps = guide.forward(x, labels)
        risk = guide.distance(maps, teacher, tf.constant(2.0))
    assert set(output) == set(labels) and maps.shape == (2, 32, 32)
    assert float(risk) > 0
    importances = [stem.kernel_importance.value, stem.input_importance.value]
    for gradient in tape.gradient(risk, importances):
        assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0


def test_margins_of_detectors_are_refused():
    with pytest.raises(ValueError, match="one class each"):
        gmpq.PolicySearch(toy(), generalization="margin")
