"""Our overlap, matching, suppression and precision against keras-cv's.

The extra `detection` holds keras-cv and pycocotools; without them only the shape of
what the adapter makes is tested.
"""

import numpy as np
import pytest
import tensorflow as tf

from gmpq_tf.detection import MeanAP, decode_and_suppress, match, ssd_boxes
from gmpq_tf.detection.boxes import iou
from gmpq_tf.detection.detections import Detections
from gmpq_tf.detection.keras_cv_boxes import FORMAT, keras_cv_found, keras_cv_truth

SIZE = (200, 300)


@pytest.fixture(scope="module")
def keras_cv():
    return pytest.importorskip("keras_cv")


def random_boxes(random, *shape):
    low = random.uniform(0, 0.6, (*shape, 2))
    high = low + random.uniform(0.05, 0.4, (*shape, 2))
    return np.concatenate([low, high], -1).astype("float32")


def test_padding_and_pixels():
    labels = {
        "boxes": np.array([[[0.1, 0.2, 0.5, 1.0], [0, 0, 0, 0]]], "float32"),
        "classes": np.array([[2, -1]]),
    }
    real = keras_cv_truth(labels, SIZE)
    np.testing.assert_allclose(real["boxes"][0], [[20, 60, 100, 300], [-1] * 4])
    assert real["classes"].tolist() == [[2, -1]]
    found = keras_cv_found(
        Detections(
            labels["boxes"],
            np.array([[1, 0]]),
            np.array([[0.7, 0.0]], "float32"),
            np.array([1]),
        ),
        SIZE,
    )
    np.testing.assert_allclose(found["boxes"], real["boxes"])
    assert found["classes"].tolist() == [[1, -1]]
    np.testing.assert_allclose(found["confidence"], [[0.7, 0.0]])


def test_overlap(keras_cv):
    random = np.random.default_rng(0)
    one, other = random_boxes(random, 20), random_boxes(random, 30)
    want = keras_cv.bounding_box.compute_iou(one, other, "rel_yxyx")
    np.testing.assert_allclose(iou(one, other), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_matching(keras_cv, seed):
    """Where no two objects want one box: then each code has a rule of its own."""
    random = np.random.default_rng(seed)
    default, objects = random_boxes(random, 60), random_boxes(random, 4)
    overlap = iou(objects, default)
    _, first = np.unique(overlap.argmax(1), return_index=True)
    overlap = overlap[np.sort(first)]
    matcher = keras_cv.layers.BoxMatcher([0.5], [0, 1], force_match_for_each_col=True)
    # Its column of padding forces a match of the first row: let that be one of none.
    rows = np.concatenate([np.zeros((1, len(overlap)), "float32"), overlap.T])
    columns, values = (np.asarray(v)[1:] for v in matcher(tf.constant(rows)))
    want = np.where(values == 1, columns, -1)
    have = match(tf.constant(overlap), tf.ones([len(overlap)], tf.bool), 0.5)
    np.testing.assert_array_equal(have, want)


def test_suppression(keras_cv):
    random = np.random.default_rng(0)
    boxes = ssd_boxes([(8, 8), (4, 4)], smallest=0.2)
    offsets = random.normal(0, 0.3, (2, boxes.count, 4)).astype("float32")
    scores = random.random((2, boxes.count, 4)).astype("float32")
    options = {"iou_threshold": 0.45, "max_detections": 50}
    have = decode_and_suppress(
        offsets, scores, boxes, score_threshold=0.6, from_logits=False, **options
    )
    from gmpq_tf.detection.boxes import decode

    layer = keras_cv.layers.MultiClassNonMaxSuppression(
        "rel_yxyx",
        from_logits=False,
        confidence_threshold=0.6,
        max_detections_per_class=50,
        **options,
    )
    corners = decode(offsets, boxes.centers(), boxes.variances)
    want = layer(tf.constant(corners), tf.constant(scores[..., 1:]))
    np.testing.assert_array_equal(have.counts, want["num_detections"])
    for image, count in enumerate(have.counts):
        np.testing.assert_array_equal(
            have.classes[image, :count], np.asarray(want["classes"])[image, :count]
        )
        np.testing.assert_allclose(
            have.scores[image, :count],
            np.asarray(want["confidence"])[image, :count],
            atol=1e-6,
        )


def test_precision(keras_cv):
    pytest.importorskip("pycocotools")
    random = np.random.default_rng(0)
    images, most = 150, 4
    places = np.stack([random.permutation(9)[:most] for _ in range(images)])
    low = np.stack([places // 3, places % 3], -1) / 3
    boxes = np.concatenate([low, low + random.uniform(0.15, 0.33, low.shape)], -1)
    labels = {
        "boxes": boxes.astype("float32"),
        "classes": random.integers(0, 2, (images, most)),
        "difficult": np.zeros((images, most), bool),
    }
    found = Detections(
        (boxes + random.normal(0, 0.03, boxes.shape)).astype("float32"),
        labels["classes"].astype("int32"),
        random.uniform(0.05, 1, (images, most)).astype("float32"),
        random.integers(1, most + 1, images),
    )
    metric = keras_cv.metrics.BoxCOCOMetrics(FORMAT, evaluate_freq=1)
    metric.update_state(keras_cv_truth(labels, SIZE), keras_cv_found(found, SIZE))
    want = float(metric.result(force=True)["MaP@[IoU=50]"])
    ours = MeanAP(["a", "b"])
    ours.add_batch(labels, found)
    assert 0.2 < want < 0.9
    assert ours.report().map_area == pytest.approx(want, abs=0.005)
