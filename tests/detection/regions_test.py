"""Regions and their features against closed forms and TensorFlow's suppression."""

import numpy as np
import pytest
import tensorflow as tf

from gmpq_tf.detection.boxes import to_centers, to_corners
from gmpq_tf.detection.region_arrays import propose_arrays
from gmpq_tf.detection.regions import propose, region_anchors, roi_align


def test_anchors_are_the_paper_s():
    anchors = region_anchors((38, 63), (600, 1000))
    assert anchors.shape == (38 * 63 * 9, 4)
    pixels = anchors * np.tile([600, 1000], 2)
    np.testing.assert_allclose(pixels[:9, :2], 8, rtol=1e-5)
    areas = pixels[:9, 2] * pixels[:9, 3]
    np.testing.assert_allclose(areas, np.tile([128.0, 256, 512], 3) ** 2, rtol=1e-5)
    np.testing.assert_allclose(
        pixels[:9, 2] / pixels[:9, 3], np.repeat([0.5, 1, 2], 3), rtol=1e-5
    )
    np.testing.assert_allclose(pixels[9, :2], (8, 24), rtol=1e-5)  # next column
    np.testing.assert_allclose(pixels[9 * 63, :2], (24, 8), rtol=1e-5)  # next row


def test_proposals_are_suppression_of_the_best_candidates():
    random = np.random.default_rng(0)
    low = random.uniform(0, 0.6, (60, 2))
    anchors = to_centers(np.concatenate([low, low + 0.3], -1)).astype("float32")
    scores = random.normal(size=(2, 60)).astype("float32")
    offsets = random.normal(size=(2, 60, 4), scale=0.3).astype("float32")
    found, counts = propose(scores, offsets, anchors, 40, 25, 0.5)
    assert found.shape == (2, 25, 4)
    for image in range(2):
        middle = offsets[image, :, :2] * anchors[:, 2:] + anchors[:, :2]
        sides = np.exp(offsets[image, :, 2:]) * anchors[:, 2:]
        boxes = np.clip(to_corners(np.concatenate([middle, sides], -1)), 0, 1)
        best = np.argsort(-scores[image])[:40]
        kept = tf.image.non_max_suppression(boxes[best], scores[image][best], 25, 0.5)
        expected = boxes[best][np.asarray(kept)]
        assert 5 < int(counts[image]) == len(expected)
        np.testing.assert_allclose(
            found[image, : len(expected)], expected, rtol=1e-5, atol=1e-6
        )
        assert not np.any(found[image, len(expected) :])
    huge, _ = propose(scores, 1e4 * np.abs(offsets), anchors, 40, 25, 0.5)
    assert np.isfinite(huge).all()


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
def test_regions_that_overlap_by_exactly_the_threshold_are_kept(threshold):
    """As by TensorFlow's suppression of one image, and as by the files' NumPy."""
    corners = [(0, 0, 0.5, 1), (0, 0, 0.5, 0.5), (0, 0, 0.5, 0.5), (0.5, 0, 1, 1)]
    corners, scores = np.array(corners, "float32"), np.array([4, 3, 2, 1], "float32")
    kept = tf.image.non_max_suppression(corners, scores, 4, threshold)
    assert len(kept) == {0.0: 2, 0.5: 3, 1.0: 4}[threshold]
    given = scores, np.zeros((4, 4), "float32"), to_centers(corners)
    found, _ = propose(*(x[None] for x in given[:2]), given[2], 4, 4, threshold)
    wanted = np.zeros((4, 4))
    wanted[: len(kept)] = corners[np.asarray(kept)]
    np.testing.assert_array_equal(found[0], wanted)
    np.testing.assert_array_equal(propose_arrays(*given, 4, 4, threshold), wanted)


def ramp(height, width):
    y, x = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    return np.stack([y, x, np.ones_like(x)], -1)[None].astype("float32")


def test_features_of_a_ramp_are_its_values_at_the_middles_of_bins():
    boxes = np.array([[[0.2, 0.25, 0.7, 0.9], [0.3, 0.3, 0.42, 0.5]]], "float32")
    found = np.asarray(roi_align(ramp(20, 30), boxes, 7))
    assert found.shape == (1, 2, 7, 7, 3)
    for number, (top, left, bottom, right) in enumerate(boxes[0]):
        bins = (np.arange(7) + 0.5) / 7
        rows = (top + (bottom - top) * bins) * 20 - 0.5
        columns = (left + (right - left) * bins) * 30 - 0.5
        wanted = np.meshgrid(rows, columns, indexing="ij")
        np.testing.assert_allclose(found[0, number, ..., 0], wanted[0], rtol=1e-4)
        np.testing.assert_allclose(found[0, number, ..., 1], wanted[1], rtol=1e-4)
        np.testing.assert_allclose(found[0, number, ..., 2], 1, rtol=1e-5)


def test_each_image_is_aligned_alone_and_features_learn():
    random = np.random.default_rng(0)
    features = tf.Variable(random.normal(size=(3, 8, 8, 2)).astype("float32"))
    low = random.uniform(0.1, 0.4, (3, 4, 2))
    boxes = np.concatenate([low, low + 0.4], -1).astype("float32")
    with tf.GradientTape() as tape:
        found = roi_align(features, boxes, 3)
        loss = tf.reduce_sum(found)
    for image in range(3):
        alone = roi_align(features[image : image + 1], boxes[image : image + 1], 3)
        np.testing.assert_allclose(found[image], alone[0], rtol=1e-5, atol=1e-6)
    # Each bin is a mean of pixels with weights that add up to 1.
    gradient = tape.gradient(loss, features)
    assert float(tf.reduce_sum(gradient)) == pytest.approx(3 * 4 * 9 * 2, rel=1e-4)
