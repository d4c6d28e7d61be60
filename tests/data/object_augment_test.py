"""Boxes and pixels move together, and as the paper says."""

import colorsys

import numpy as np
import pytest
import tensorflow as tf

from gmpq_tf.data import object_augment
from gmpq_tf.data.object_augment import (
    LEAST_IOUS,
    cut_window,
    vary_colours,
    vary_flip,
    vary_ssd,
    zoomed_window,
)

SIZE = (90, 120)


def labels(*boxes, padding=0):
    count = len(boxes)
    return {
        "boxes": tf.constant([*boxes, *[[0.0] * 4] * padding], tf.float32),
        "classes": tf.constant([*range(count), *[-1] * padding]),
        "difficult": tf.constant([True] * count + [False] * padding),
    }


def seeds(count):
    return [tf.constant([7, k], tf.int64) for k in range(count)]


@pytest.fixture
def same_colours(monkeypatch):
    monkeypatch.setattr(object_augment, "vary_colours", lambda image, seed: image)


def extent(mask):
    """(ymin, xmin, ymax, xmax) of the true pixels, in pixels."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [rows[0], columns[0], rows[-1] + 1, columns[-1] + 1]


@pytest.mark.parametrize("vary", [vary_ssd, vary_flip])
def test_boxes_stay_around_what_they_were_drawn_around(same_colours, vary):
    """Two patches of a colour of their own on black, in an image of another shape."""
    height, width = 240, 200
    image = np.zeros((height, width, 3), "uint8")
    places = [(24, 20, 120, 80), (130, 90, 230, 190)]
    for channel, (top, left, bottom, right) in enumerate(places):
        image[top:bottom, left:right, channel] = 255
    sides = np.array([height, width, height, width])
    own = labels(*(np.array(p) / sides for p in places), padding=1)
    run = tf.function(lambda seed: vary(tf.constant(image), own, seed, SIZE))
    seen, dropped, mirrored = 0, 0, 0
    for seed in seeds(60):
        result, found = (tf.nest.map_structure(np.asarray, part) for part in run(seed))
        assert result.shape == (*SIZE, 3) and result.dtype == np.uint8
        assert found["classes"][2] == -1 and not found["boxes"][2].any()
        for number in (0, 1):
            # FILL has the same numbers in all channels, nearly: only patches stand out.
            patch = result[..., number].astype(int) - result[..., 2] > 100
            if found["classes"][number] < 0:
                dropped += 1
                assert not found["difficult"][number]
                assert patch.mean() < 0.5
                continue
            box = found["boxes"][number] * np.tile(SIZE, 2)
            np.testing.assert_allclose(extent(patch), box, atol=1.01)
            assert found["difficult"][number]
            seen += 1
        both = found["classes"][:2].min() >= 0
        mirrored += both and found["boxes"][0, 1] > found["boxes"][1, 1]
    assert seen > 60 and 5 < mirrored < 55
    assert (dropped > 5) == (vary is vary_ssd)


def test_the_same_seed_gives_the_same():
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), "uint8")
    own = labels([0.1, 0.2, 0.6, 0.7])
    first, again, other = (
        vary_ssd(tf.constant(image), own, tf.constant([0, k], tf.int64), (32, 32))
        for k in (3, 3, 4)
    )
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1]["boxes"], again[1]["boxes"])
    assert not np.array_equal(first[0], other[0])


def test_half_of_the_images_are_zoomed_out_up_to_four_times():
    windows = np.array([zoomed_window(seed) for seed in seeds(200)])
    sides = windows[:, 2:] - windows[:, :2]
    np.testing.assert_allclose(sides[:, 0], sides[:, 1], atol=1e-5)
    plain = np.all(windows == [0, 0, 1, 1], axis=1)
    assert 70 < plain.sum() < 130
    assert 1 < sides[~plain].min() < 1.3 and 3.7 < sides.max() <= 4
    assert (windows[:, :2] <= 0).all() and (windows[:, 2:] >= 1 - 1e-6).all()


def overlap(a, b):
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    shared = np.prod(np.maximum(high - low, 0))
    return shared / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - shared)


def test_parts_overlap_an_object_as_much_as_their_rule_says():
    boxes = np.array([[0.05, 0.1, 0.5, 0.45], [0.1, 0.1, 0.95, 0.95]], "float32")
    own = labels(*boxes, padding=1)
    height, width = 300, 400
    window = tf.constant([0.0, 0.0, 1.0, 1.0])
    run = tf.function(
        lambda s: cut_window(tf.constant([height, width]), own, window, s)
    )
    whole, by_rule = np.zeros(7, int), np.zeros(7, int)
    lowest = np.ones(7)
    for seed in seeds(500):
        rule = int(
            tf.random.stateless_uniform([], tf.random.split(seed, 3)[0], 0, 7, tf.int32)
        )
        part = np.array(run(seed))
        by_rule[rule] += 1
        if np.array_equal(part, window):
            whole[rule] += 1
            continue
        sides = part[2:] - part[:2]
        assert (sides >= 0.3 - 1e-6).all() and (part >= 0).all() and (part <= 1).all()
        assert 0.5 <= sides[0] * height / (sides[1] * width) <= 2
        centers = (boxes[:, :2] + boxes[:, 2:]) / 2
        assert ((centers > part[:2]) & (centers < part[2:])).all(1).any()
        lowest[rule] = min(lowest[rule], max(overlap(part, box) for box in boxes))
    assert (by_rule > 45).all()
    assert whole[0] == by_rule[0] and (whole[[1, 2, 3, 6]] == 0).all()
    for rule, least in enumerate(LEAST_IOUS, 1):
        assert lowest[rule] >= least - 1e-6
    # A rule that could never refuse would give all of them the last one's.
    assert lowest[6] < 0.3 < 0.5 <= lowest[3] < 0.7


def test_images_without_objects_are_kept_whole():
    own = labels(padding=2)
    window = tf.constant([-1.0, -1.0, 2.0, 2.0])
    for seed in seeds(20):
        part = cut_window(tf.constant([30, 40]), own, window, seed)
        np.testing.assert_array_equal(part, window)


def plain_colours(image, seed):
    """The same by `colorsys`, pixel for pixel."""
    split = tf.unstack(tf.random.split(seed, 3))
    does = np.array(tf.random.stateless_uniform([6], split[0])) < 0.5
    draws = np.array(tf.random.stateless_uniform([4], split[1]))
    brightness = (64 * draws[0] - 32) * does[0]
    contrast = 0.5 + draws[1] if does[1] else 1
    pixels = np.clip(image + brightness, 0, 255)
    if does[2]:
        pixels = np.clip(pixels * contrast, 0, 255)
    result = np.zeros(image.shape)
    for place in np.ndindex(image.shape[:2]):
        hue, saturation, value = colorsys.rgb_to_hsv(*pixels[place] / 255)
        saturation = min(1, saturation * (0.5 + draws[2] if does[3] else 1))
        hue = (hue + (36 * draws[3] - 18) / 360 * does[4]) % 1
        result[place] = np.array(colorsys.hsv_to_rgb(hue, saturation, value)) * 255
    if not does[2]:
        result = np.clip(result * contrast, 0, 255)
    order = tf.random.experimental.stateless_shuffle(tf.range(3), split[2])
    return result[..., np.array(order)] if does[5] else result


def test_colours_are_those_of_another_program():
    image = np.random.default_rng(1).integers(0, 256, (3, 4, 3), "uint8")
    changed = 0
    for seed in seeds(40):
        have = np.array(vary_colours(tf.constant(image), seed))
        np.testing.assert_allclose(have, plain_colours(image, seed), atol=1.0)
        changed += not np.array_equal(have, image)
    assert changed > 30


def test_grey_images_stay_grey(same_colours):
    image = np.full((20, 30, 1), 200, "uint8")
    for seed in seeds(12):
        result, found = vary_ssd(
            tf.constant(image), labels([0.1, 0.1, 0.9, 0.9]), seed, (16, 16)
        )
        assert result.shape == (16, 16, 1)
        assert set(np.unique(result)) <= {115, 200}  # the mean of FILL, and the image
        assert found["boxes"].shape == (1, 4)
