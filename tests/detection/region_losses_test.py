"""Targets and losses of two-stage detection against NumPy, image by image."""

import math

import numpy as np
import pytest
import tensorflow as tf

from gmpq_tf.detection.boxes import encode, iou, to_centers, to_corners
from gmpq_tf.detection.region_layers import RegionSearch
from gmpq_tf.detection.region_losses import (
    AnchorBoxLoss,
    AnchorScoreLoss,
    RegionLoss,
    anchor_targets,
    draw,
    region_targets,
)

SEARCH = RegionSearch((6, 8), (96, 128), scales=(1.5, 3.0), before=50, regions=10)


def labels_of(random, images=4, objects=3):
    low = random.uniform(0, 0.6, (images, objects, 2))
    boxes = np.concatenate([low, low + random.uniform(0.1, 0.4, low.shape)], -1)
    classes = random.integers(-1, 3, (images, objects))
    return {"boxes": boxes.astype("float32"), "classes": classes.astype("int32")}


@pytest.mark.parametrize("seed", range(4))
def test_targets_of_anchors_by_brute_force(seed):
    labels = labels_of(np.random.default_rng(seed))
    made = anchor_targets(labels, SEARCH)
    centers = SEARCH.centers()
    corners = to_corners(centers)
    inside = (corners >= 0).all(1) & (corners <= 1).all(1)
    for image, (boxes, classes) in enumerate(zip(*labels.values(), strict=True)):
        own = boxes[classes >= 0]
        overlap = iou(own, corners) * inside
        most = overlap.max(0) if len(own) else np.zeros(len(corners))
        marks = np.where(inside & (most < 0.3), 0, -1)
        marks[most >= 0.7] = 1
        for row in overlap:
            if row.max() > 0:
                marks[row.argmax()] = 1
        assert np.array_equal(made["rpn_scores"][image], marks)
        found = np.asarray(made["rpn_boxes"][image])
        assert np.array_equal(found[:, 4], marks)
        best = np.flatnonzero(most >= 0.7)
        for anchor in best:
            goals = encode(own, centers[anchor], (1.0, 1.0))
            gap = np.abs(goals - found[anchor, :4]).max(1).min()
            assert gap < 1e-5


def test_targets_of_regions():
    objects = np.array([[[0.1, 0.1, 0.5, 0.5, 2], [0.4, 0.4, 0.9, 0.9, 1]]], "float32")
    regions = np.array(
        [[[0.1, 0.1, 0.5, 0.6], [0.4, 0.4, 0.9, 0.9], [0, 0.7, 0.2, 1], [0, 0, 0, 0]]],
        "float32",
    )
    classes, offsets = region_targets(tf.constant(objects), tf.constant(regions))
    assert classes.numpy().tolist() == [[2, 1, 0, -1]]
    wanted = encode(objects[0, 0, :4], to_centers(regions[0, 0]), (0.1, 0.2))
    np.testing.assert_allclose(offsets[0, 0], wanted, atol=1e-5)
    assert not np.any(offsets[0, 1:])
    none = tf.zeros([1, 0, 5])
    assert region_targets(none, tf.constant(regions))[0].numpy().tolist() == [
        [0, 0, 0, -1]
    ]


def test_draws_are_as_many_as_asked_and_depend_on_the_seed_alone():
    random = np.random.default_rng(0)
    found = random.random((3, 200)) < [[0.5], [0.02], [0.0]]
    empty = ~found & (random.random((3, 200)) < 0.9)
    seed = random.normal(size=(3, 200)).astype("float32")
    kept = draw(found, empty, 64, 0.5, seed).numpy()
    objects = (kept & found).sum(1)
    assert objects.tolist() == [32, found[1].sum(), 0]
    assert kept.sum(1).tolist() == [64, 64, 64]
    assert not (kept & ~found & ~empty).any()
    assert np.array_equal(kept, draw(found, empty, 64, 0.5, seed))
    other = draw(found, empty, 64, 0.5, seed + np.float32(1e-6)).numpy()
    assert not np.array_equal(kept, other)


def test_losses_of_anchors_where_all_are_drawn():
    random = np.random.default_rng(0)
    marks = np.array([[1, 0, 0, -1, 1], [0, 0, -1, -1, 0]])
    logits = random.normal(size=(2, 5, 1)).astype("float32")
    found = AnchorScoreLoss().call(marks, logits)
    p = 1 / (1 + np.exp(-logits[..., 0].astype("float64")))
    losses = np.where(marks == 1, -np.log(p), -np.log(1 - p))
    wanted = [row[m >= 0].mean() for row, m in zip(losses, marks, strict=True)]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    # Where two of each are drawn, the mean is of four.
    several = AnchorScoreLoss(2).call([[1, 1, 0, 0, 0]], np.zeros((1, 5, 1), "f4"))
    np.testing.assert_allclose(several, math.log(2), rtol=1e-5)
    offsets = random.normal(size=(2, 5, 4)).astype("float32")
    wanted_offsets = np.concatenate([0 * offsets, marks[..., None]], -1)
    found = AnchorBoxLoss().call(wanted_offsets, offsets)
    size = np.abs(offsets)
    smooth = np.where(size < 1 / 9, 4.5 * size**2, size - 0.5 / 9).sum(-1)
    np.testing.assert_allclose(found, [smooth[0, [0, 4]].sum() / 4, 0], rtol=1e-5)


def test_loss_of_regions_by_hand():
    random = np.random.default_rng(0)
    objects = np.array([[[0.1, 0.1, 0.5, 0.5, 2], [0, 0, 0, 0, 0]]], "float32")
    regions = np.array([[[0.1, 0.1, 0.5, 0.5], [0.5, 0.5, 1, 1], [0] * 4]], "float32")
    scores = random.normal(size=(1, 3, 3)).astype("float32")
    offsets = random.normal(size=(1, 3, 12)).astype("float32")
    rows = np.concatenate([regions, scores, offsets], -1)
    found = RegionLoss(4).call(objects, rows)
    shares = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    size = np.abs(offsets[0, 0, 8:12])  # of class 2; it is to move nowhere
    smooth = np.where(size < 1, size**2 / 2, size - 0.5).sum()
    total = -np.log(shares[0, 0, 2]) - np.log(shares[0, 1, 0]) + smooth
    np.testing.assert_allclose(found, [total / 2], rtol=1e-5)


def test_padding_changes_no_loss_and_regions_get_no_gradient():
    random = np.random.default_rng(1)
    labels = labels_of(random, 2)
    more = {
        "boxes": np.pad(labels["boxes"], [(0, 0), (0, 4), (0, 0)]),
        "classes": np.pad(labels["classes"], [(0, 0), (0, 4)], constant_values=-1),
    }
    one, other = (anchor_targets(each, SEARCH) for each in (labels, more))
    for name in ("rpn_boxes", "rpn_scores"):
        assert np.array_equal(one[name], other[name])
    rows = random.random((2, 10, 4 + 5 * 4)).astype("float32")
    rows[..., 2:4] = np.minimum(rows[..., :2] + 0.3, 1)
    rows = tf.constant(rows)
    with tf.GradientTape() as tape:
        tape.watch(rows)
        losses = RegionLoss().call(other["objects"], rows)
    np.testing.assert_allclose(RegionLoss().call(one["objects"], rows), losses)
    gradient = tape.gradient(losses, rows).numpy()
    assert np.isfinite(gradient).all()
    assert not gradient[..., :4].any() and gradient[..., 4:].any()
