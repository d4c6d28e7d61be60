"""Matching, losses and decoding against brute force, closed forms and TensorFlow."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from gmpq_tf.detection.boxes import encode, iou, to_centers, to_corners
from gmpq_tf.detection.default_boxes import BoxError, ssd_boxes
from gmpq_tf.detection.detections import decode_and_suppress
from gmpq_tf.detection.losses import BoxLoss, HardNegativeCrossEntropy
from gmpq_tf.detection.matching import match, targets

BOXES = ssd_boxes([(3, 3), (1, 1)], ratios=[(2,), (2,)])


def matched_by_hand(overlap, known, least_iou):
    """The rule of the paper, object by object."""
    objects, boxes = overlap.shape
    chosen = np.full(boxes, -1)
    for box in range(boxes):
        values = [overlap[m, box] if known[m] else -1 for m in range(objects)]
        if max(values) >= least_iou:
            chosen[box] = int(np.argmax(values))
    for m in range(objects):
        if known[m] and overlap[m].max() > 0:
            chosen[int(np.argmax(overlap[m]))] = m
    return chosen


def test_matching_is_the_paper_s_rule():
    random = np.random.default_rng(0)
    forced = 0
    function = tf.function(match, reduce_retracing=True)
    for _ in range(200):
        shape = random.integers(1, 6), random.integers(1, 9)
        # Few values, so that there are ties and boxes that two objects want.
        overlap = random.choice([0, 0.1, 0.2, 0.3, 0.5, 0.6], shape).astype("float32")
        known = random.random(shape[0]) < 0.8
        expected = matched_by_hand(overlap, known, 0.5)
        received = function(tf.constant(overlap), tf.constant(known), 0.5)
        np.testing.assert_array_equal(received, expected)
        forced += np.any((expected >= 0) & (overlap.max(0) < 0.5))
    assert forced > 20


def labels_of(boxes, classes, length):
    """One image's labels, padded."""
    padded = np.full((length, 4), -1, "float32")
    numbers = np.full(length, -1)
    padded[: len(boxes)], numbers[: len(boxes)] = boxes, classes
    return padded[None], numbers[None]


def test_targets_are_offsets_of_the_objects_and_padding_changes_nothing():
    random = np.random.default_rng(1)
    low = random.uniform(0, 0.5, (4, 2))
    objects = np.concatenate([low, low + random.uniform(0.2, 0.5, (4, 2))], -1)
    objects, classes = objects.astype("float32"), np.array([2, 0, 1, 0])
    made = []
    for length in (4, 9):
        boxes, numbers = labels_of(objects, classes, length)
        made.append(targets({"boxes": boxes, "classes": numbers}, BOXES))
    np.testing.assert_array_equal(made[0]["boxes"], made[1]["boxes"])
    np.testing.assert_array_equal(made[0]["scores"], made[1]["scores"])
    overlap = iou(objects, BOXES.corners())
    chosen = matched_by_hand(overlap, np.ones(4, bool), 0.5)
    found = chosen >= 0
    np.testing.assert_array_equal(
        made[0]["scores"][0], np.where(found, classes[chosen] + 1, 0)
    )
    np.testing.assert_array_equal(made[0]["boxes"][0, :, 4], found)
    wanted = encode(objects[chosen], BOXES.centers(), (0.1, 0.2))
    np.testing.assert_allclose(
        made[0]["boxes"][0, :, :4], np.where(found[:, None], wanted, 0), atol=1e-4
    )


def test_an_image_without_objects_has_no_target_and_no_loss():
    for length in (0, 3):
        boxes, numbers = labels_of(np.zeros((0, 4)), [], length)
        made = targets({"boxes": boxes, "classes": numbers}, BOXES)
        assert not np.any(made["boxes"]) and not np.any(made["scores"])
    scores = np.random.default_rng(0).normal(size=(1, BOXES.count, 4))
    assert float(HardNegativeCrossEntropy()(made["scores"], scores)) == 0
    assert float(BoxLoss()(made["boxes"], scores)) == 0


def cross_entropy(label, logits):
    logits = np.asarray(logits, "float64")
    return np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[label]


def test_the_losses_are_the_paper_s_sum():
    random = np.random.default_rng(2)
    images, count, classes = 5, 30, 3
    scores = random.normal(size=(images, count, classes + 1)).astype("float32")
    labels = np.zeros((images, count), int)
    for image, positives in enumerate((2, 0, 9, 1, 4)):  # 27 hard ones of 21: all
        places = random.permutation(count)[:positives]
        labels[image, places] = random.integers(1, classes + 1, positives)
    labels[3, 5:20] = np.where(labels[3, 5:20] > 0, labels[3, 5:20], -1)  # ignored
    total = 0.0
    for image in range(images):
        found = np.flatnonzero(labels[image] > 0)
        empty = np.flatnonzero(labels[image] == 0)
        entropies = [cross_entropy(0, scores[image, i]) for i in empty]
        hard = sorted(entropies, reverse=True)[: 3 * len(found)]
        total += sum(hard)
        total += sum(cross_entropy(labels[image, i], scores[image, i]) for i in found)
    positives = (labels > 0).sum()
    received = float(HardNegativeCrossEntropy()(labels, scores))
    assert received == pytest.approx(total / positives, rel=1e-5)
    shares = keras.ops.softmax(scores)
    of_shares = HardNegativeCrossEntropy(from_logits=False)(labels, shares)
    assert float(of_shares) == pytest.approx(total / positives, rel=1e-4)

    offsets = random.normal(size=(images, count, 4), scale=2).astype("float32")
    marks = (labels > 0)[..., None].astype("float32")
    wanted = random.normal(size=(images, count, 4)).astype("float32")
    gap = np.abs(offsets - wanted)
    smooth = np.where(gap < 1, gap**2 / 2, gap - 0.5) * marks
    received = float(BoxLoss()(np.concatenate([wanted, marks], -1), offsets))
    assert received == pytest.approx(smooth.sum() / positives, rel=1e-5)


def test_only_boxes_that_count_have_a_gradient():
    labels = np.array([[1, 0, 0, 0, 0, 0, -1]])
    logits = np.zeros((1, 7, 3), "float32")
    logits[0, 1:4, 1] = (3, 2, 1)  # the hardest three
    logits[0, 6, 1] = 9
    scores = tf.Variable(logits)
    with tf.GradientTape() as tape:
        loss = HardNegativeCrossEntropy()(labels, scores)
    moved = np.any(np.asarray(tape.gradient(loss, scores))[0] != 0, axis=-1)
    assert moved.tolist() == [True, True, True, True, False, False, False]
    offsets = tf.Variable(np.ones((1, 7, 4), "float32"))
    wanted = np.full((1, 7, 5), np.inf, "float32")
    wanted[..., 4] = 0
    wanted[0, 0] = (0, 0, 0, 0, 1)
    with tf.GradientTape() as tape:
        loss = BoxLoss()(wanted, offsets)
    moved = np.any(np.asarray(tape.gradient(loss, offsets))[0] != 0, axis=-1)
    assert moved.tolist() == [True] + [False] * 6
    assert float(loss) == pytest.approx(2.0)


def test_losses_are_read_back_from_their_configuration():
    for loss in (HardNegativeCrossEntropy(ratio=2, from_logits=False), BoxLoss()):
        config = keras.saving.serialize_keras_object(loss)
        again = keras.saving.deserialize_keras_object(config)
        assert type(again) is type(loss) and again.get_config() == loss.get_config()


def suppressed_by_hand(boxes, scores, threshold, overlap, most):
    """(score, class, box) that stay: TensorFlow's suppression for each class."""
    kept = []
    for label in range(1, scores.shape[-1]):
        picked = tf.image.non_max_suppression(
            boxes, scores[:, label], most, overlap, threshold
        )
        kept += [(scores[i, label], label - 1, i) for i in np.asarray(picked)]
    return sorted(kept, reverse=True)[:most]


@pytest.mark.parametrize("most", [5, 300])
def test_detections_are_those_of_suppression_class_by_class(most):
    random = np.random.default_rng(3)
    images, count = 2, BOXES.count
    offsets = random.normal(size=(images, count, 4)).astype("float32")
    logits = random.normal(size=(images, count, 4), scale=2).astype("float32")
    found = decode_and_suppress(offsets, logits, BOXES, 0.2, 0.3, most)
    shares = np.asarray(keras.ops.softmax(logits))
    centers = BOXES.centers()
    middle = offsets[..., :2] * 0.1 * centers[:, 2:] + centers[:, :2]
    sides = np.exp(offsets[..., 2:] * 0.2) * centers[:, 2:]
    boxes = to_corners(np.concatenate([middle, sides], -1))
    for image in range(images):
        expected = suppressed_by_hand(boxes[image], shares[image], 0.2, 0.3, most)
        own, classes, scores = found.of_image(image)
        assert len(scores) == len(expected) > 4
        np.testing.assert_allclose(scores, [score for score, _, _ in expected])
        assert classes.tolist() == [label for _, label, _ in expected]
        picked = boxes[image][[i for _, _, i in expected]]
        np.testing.assert_allclose(own, np.clip(picked, 0, 1), atol=1e-6)


def test_what_is_encoded_is_found_again():
    objects = np.array([[0.1, 0.1, 0.5, 0.6], [0.4, 0.5, 0.9, 0.95]], "float32")
    boxes, numbers = labels_of(objects, [1, 0], 3)
    made = targets({"boxes": boxes, "classes": numbers}, BOXES)
    logits = 20 * np.eye(3, dtype="float32")[np.asarray(made["scores"])]
    found = decode_and_suppress(made["boxes"][..., :4], logits, BOXES)
    own, classes, scores = found.of_image(0)
    order = np.argsort(classes)
    assert classes[order].tolist() == [0, 1] and np.all(scores > 0.99)
    np.testing.assert_allclose(own[order], objects[::-1], atol=1e-5)
    nothing = decode_and_suppress(
        made["boxes"][..., :4], 20 * np.eye(3)[np.zeros((1, BOXES.count), int)], BOXES
    )
    assert nothing.counts.tolist() == [0] and len(nothing.of_image(0)[0]) == 0
    with pytest.raises(BoxError, match="default boxes of the model"):
        decode_and_suppress(made["boxes"][:, 1:, :4], logits[:, 1:], BOXES)
    assert to_centers(objects).shape == (2, 4)
