"""Grad-CAM of detectors against finite differences and one tape over the network."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import gmpq_tf as gmpq
from gmpq_tf.attribution import grad_cam, labels_to_boxes, split_head
from gmpq_tf.attribution.grad_cam import class_scores
from gmpq_tf.detection import DefaultBoxesLayer, ssd_boxes, targets
from gmpq_tf.graph import GraphError
from gmpq_tf.models import build_model
from gmpq_tf.task.tasks import task_of

layers = keras.layers


def small(activation=None, seed=0):
    keras.utils.set_random_seed(seed)
    return build_model("ssd_resnet8", (32, 32, 3), 2, classifier_activation=activation)


def toy():
    """Two levels of one convolution each, on images of 16 x 16."""
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((16, 16, 3))
    maps = []
    for number in range(2):
        x = layers.Conv2D(4, 3, 2, padding="same", name=f"conv{number}")(x)
        x = layers.ReLU(name=f"relu{number}")(layers.BatchNormalization()(x))
        maps.append(x)
    boxes = ssd_boxes([(8, 8), (4, 4)])
    rows = {"boxes": [], "scores": []}
    for level, (x, count) in enumerate(zip(maps, boxes.boxes_per_place, strict=True)):
        for kind, width in (("boxes", 4), ("scores", 3)):
            y = layers.Conv2D(count * width, 1, name=f"{kind}{level}")(x)
            rows[kind].append(layers.Reshape((-1, width))(y))
    offsets, scores = (layers.Concatenate(axis=1)(rows[kind]) for kind in rows)
    outputs = {"boxes": DefaultBoxesLayer(boxes, name="boxes")(offsets)}
    return keras.Model(inputs, {**outputs, "scores": scores}, name="toy")


def boxes_of(model):
    return next(x for x in model.layers if isinstance(x, DefaultBoxesLayer))


def objects(model, seed=0, images=3):
    """Images, and labels of which the last image's hold no object."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 0.5, (images, 2, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0.2, 0.5, corner.shape)], -1)
    classes = rng.integers(0, 2, (images, 2))
    classes[-1] = -1
    labels = {
        "boxes": tf.constant(boxes, tf.float32),
        "classes": tf.constant(classes, tf.int32),
    }
    x = rng.uniform(0, 1, (images, *model.input_shape[1:])).astype("float32")
    return tf.constant(x), targets(labels, boxes_of(model).default_boxes)


def test_score_is_the_mean_over_boxes_with_an_object_by_hand():
    logits = tf.constant([[[9.0, 1, 2], [9, 3, 5], [9, 7, 8]], [[1.0, 2, 3]] * 3])
    classes = tf.constant([[1, 0, 2], [0, 0, 0]])
    np.testing.assert_allclose(class_scores(logits, classes), [(1 + 8) / 2, 0])


@pytest.mark.parametrize("activation", [None, "softmax"])
def test_maps_are_those_of_one_tape_over_the_whole_network(activation):
    model = small(activation)
    x, labels = objects(model)
    backbone, head = split_head(model, "stage3_block1_relu2")
    feature = backbone(x, training=False)
    maps, (logits, output) = grad_cam(head, feature, labels["scores"], training=False)
    tapped = keras.Model(
        model.inputs,
        [
            model.get_layer("stage3_block1_relu2").output,
            model.get_layer("scores" if activation is None else "scores_rows").output,
        ],
    )
    with tf.GradientTape() as tape:
        a, scores = tapped(x, training=False)
        known = labels["scores"].numpy()
        total = 0.0
        for image, row in enumerate(known):
            found = np.flatnonzero(row)
            if len(found):
                picked = [scores[image, i, row[i]] for i in found]
                total += tf.add_n(picked) / len(found)
    gradient = tape.gradient(total, a).numpy()
    alpha = gradient.mean((1, 2), keepdims=True)
    expected = np.maximum((alpha * a.numpy()).sum(-1), 0)
    assert expected[0].max() > 0 and not expected[-1].any()
    np.testing.assert_allclose(maps, expected, atol=1e-5)
    whole = model(x, training=False)
    for name in ("boxes", "scores"):
        np.testing.assert_allclose(output[name], whole[name], atol=1e-5)
    np.testing.assert_allclose(logits, scores, atol=1e-5)


def test_gradient_of_the_score_by_finite_differences():
    model = small()
    x, labels = objects(model, images=1)
    labels["scores"] = tf.where(tf.range(labels["scores"].shape[1]) % 40 == 39, 2, 0)
    labels["scores"] = labels["scores"][None]
    backbone, head = split_head(model)
    first, *others = backbone(x, training=False)

    def score(a):
        logits, _ = head([a, *others], training=False)
        return float(class_scores(logits, labels["scores"])[0])

    with tf.GradientTape() as tape:
        tape.watch(first)
        logits, _ = head([first, *others], training=False)
        value = class_scores(logits, labels["scores"])
    gradient = tape.gradient(value, first).numpy()
    rng = np.random.default_rng(0)
    for _ in range(5):
        way = rng.standard_normal(first.shape).astype("float32")
        step = 1e-3
        found = (score(first + step * way) - score(first - step * way)) / (2 * step)
        np.testing.assert_allclose(found, (gradient * way).sum(), rtol=0.02, atol=1e-3)


@pytest.mark.parametrize(
    "name, size, feature",
    [
        ("ssd300_vgg16", 300, "head_fc2_relu"),
        ("ssd_resnet8", 64, "stage3_block1_relu2"),
    ],
)
def test_the_map_is_the_last_that_all_levels_but_one_depend_on(name, size, feature):
    if name == "ssd300_vgg16":  # 26 million parameters, none of which is needed
        with keras.device("cpu"):
            model = build_model(name, (size, size, 3), 2)
    else:
        model = build_model(name, (size, size, 3), 2)
    backbone, _ = split_head(model)
    assert backbone.outputs[0]._keras_history.operation.name == feature


def test_a_layer_that_no_score_depends_on_is_refused():
    model = small()
    with pytest.raises(GraphError, match="no_such"):
        split_head(model, "no_such")
    with pytest.raises(GraphError, match="scores of 1 of its 4 levels"):
        split_head(model, "boxes0")


def test_labels_of_another_form_are_refused():
    model = small()
    _, labels = objects(model)
    count = labels["scores"].shape[1]
    np.testing.assert_array_equal(labels_to_boxes(labels, count), labels["scores"])
    for wrong in ({"boxes": labels["boxes"]}, tf.constant([1, 2, 3]), None):
        with pytest.raises(ValueError, match="default boxes"):
            labels_to_boxes(wrong, count)


@pytest.mark.slow
@pytest.mark.parametrize("attribution_class", ["label", "predicted"])
def test_a_search_with_attribution_moves_the_importances(attribution_class):
    model = toy()
    x, labels = objects(model, images=4)
    search = gmpq.PolicySearch(
        model,
        gmpq.SearchSpace((2, 8), (2, 8)),
        zeta=0.0,
        eta=1e4,
        attribution_class=attribution_class,
    )
    search.compile("sgd", keras.optimizers.SGD(1.0), loss=task_of(model).loss())
    before = [np.asarray(v) for v in search.importance_variables]
    history = search.fit(
        tf.data.Dataset.from_tensors((x, labels)), epochs=1, verbose=0
    ).history
    assert history["generalization_risk"][0] > 0
    assert np.isfinite(history["loss"][0])
    moved = [
        np.abs(np.asarray(v) - b).max()
        for v, b in zip(search.importance_variables, before, strict=True)
    ]
    assert max(moved) > 0
    search.policy().check(list(search.candidates))


@pytest.mark.slow
def test_eta_alone_guides_layers_before_the_map():
    """With the task loss switched off gradients of R_G reach the backbone's bits."""
    model = toy()
    x, labels = objects(model, images=4)
    search = gmpq.PolicySearch(
        model, gmpq.SearchSpace((2, 8), (2, 8), pinned={}), zeta=0.0, eta=1e5
    )

    class Nothing(keras.losses.Loss):
        def call(self, y_true, y_pred):
            return 0.0 * keras.ops.sum(y_pred)

    search.compile(
        keras.optimizers.SGD(0.0),
        keras.optimizers.SGD(1.0),
        loss={"boxes": Nothing(), "scores": Nothing()},
    )
    stem = search.hypernet.get_layer("conv0")
    before = [np.asarray(v) for v in (stem.kernel_importance, stem.input_importance)]
    search.fit(tf.data.Dataset.from_tensors((x, labels)), verbose=0)
    after = [np.asarray(v) for v in (stem.kernel_importance, stem.input_importance)]
    assert max(np.abs(a - b).max() for a, b in zip(before, after, strict=True)) > 0


@pytest.mark.slow
def test_a_table_of_deltas_has_attribution_too():
    model = toy()
    x, _ = objects(model, images=4)
    result = gmpq.search_policy(
        model,
        np.asarray(x),
        strategy="loss_delta",
        budget="W4A4",
        space=gmpq.SearchSpace((2, 8), (2, 8)),
        images=4,
        eta=10.0,
        progress="none",
    )
    result.policy.check(list(result.policy))


def test_margins_of_detectors_are_refused():
    with pytest.raises(ValueError, match="one class each"):
        gmpq.PolicySearch(toy(), generalization="margin")


def test_which_output_has_the_scores_is_not_guessed():
    model = toy()
    points = layers.Dense(10)(model.output["scores"])
    more = keras.Model(model.inputs, {**model.output, "points": points})
    with pytest.raises(GraphError, match="offsets and scores alone"):
        split_head(more)
