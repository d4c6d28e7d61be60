"""What NumPy computes between two files against TensorFlow's operators."""

import numpy as np
import pytest
import tensorflow as tf

from gmpq_tf.detection.region_arrays import align_array, propose_arrays, suppress
from gmpq_tf.detection.region_detections import class_boxes, found_in_regions
from gmpq_tf.detection.regions import propose, region_anchors, roi_align


def corners(random, shape, most=0.6):
    low = random.uniform(0, most, (*shape, 2))
    found = np.concatenate([low, low + random.uniform(0.02, 0.4, low.shape)], -1)
    return found.astype("float32")


@pytest.mark.parametrize("seed", range(5))
def test_suppression_is_tensorflow_s(seed):
    random = np.random.default_rng(seed)
    boxes = corners(random, (80,))
    scores = random.normal(size=80).astype("float32").round(1)  # with equal ones
    wanted = tf.image.non_max_suppression(boxes, scores, 20, 0.3)
    found = suppress(boxes, scores, 0.3, 20)
    assert len(found) > 5 and np.array_equal(found, wanted)
    assert len(suppress(boxes[:0], scores[:0], 0.3, 20)) == 0


def test_regions_are_those_of_the_layer():
    random, anchors = np.random.default_rng(0), region_anchors((6, 8), (96, 128))
    scores = random.normal(size=(3, len(anchors))).astype("float32")
    offsets = random.normal(size=(3, len(anchors), 4)).astype("float32")
    wanted, counts = propose(scores, offsets, anchors, 200, 150, 0.3)
    assert 10 < int(min(counts)) < int(max(counts)) < 150
    for image in range(3):
        own = scores[image], offsets[image], anchors, 200, 150, 0.3
        np.testing.assert_allclose(propose_arrays(*own), wanted[image], atol=1e-6)


def test_features_are_those_of_the_layer():
    """Also of a region at the border, of the whole image, and of padding."""
    random = np.random.default_rng(0)
    features = random.normal(size=(2, 9, 13, 5)).astype("float32")
    boxes = corners(random, (2, 20))
    boxes[:, 0], boxes[:, 1], boxes[:, 2] = (0, 0, 1, 1), 0, (0.9, 0, 1, 0.05)
    wanted = roi_align(features, boxes, 7, 2)
    for image in range(2):
        found = align_array(features[image], boxes[image], 7, 2)
        np.testing.assert_allclose(found, wanted[image], atol=2e-6)


def test_objects_are_those_of_tensorflow():
    random = np.random.default_rng(0)
    regions = corners(random, (2, 40))
    regions[1, 30:] = 0  # padding, which says nothing
    rest = random.normal(size=(2, 40, 5 * 4), scale=2.0)
    rows = np.concatenate([regions, rest], -1).astype("float32")
    boxes, shares = class_boxes(rows)
    assert not shares[1, 30:].any()
    inside = np.clip(boxes, 0, 1)
    wanted = tf.image.combined_non_max_suppression(inside, shares, 25, 25, 0.4, 0.05)
    found = found_in_regions(rows, 0.05, 0.4, 25)
    assert np.array_equal(found.counts, wanted.valid_detections)
    np.testing.assert_allclose(found.boxes, wanted.nmsed_boxes, atol=1e-6)
    np.testing.assert_allclose(found.scores, wanted.nmsed_scores, atol=1e-6)
    assert np.array_equal(found.classes, wanted.nmsed_classes)
