"""Boxes and default boxes against Keras, NumPy and closed forms."""

import keras
import numpy as np
import pytest

from gmpq_tf.detection.boxes import decode, encode, iou, to_centers, to_corners
from gmpq_tf.detection.default_boxes import BoxError, DefaultBoxes, ssd_boxes
from gmpq_tf.detection.default_boxes_layer import DefaultBoxesLayer, default_boxes_of


def ssd300():
    """The boxes of SSD300 in shares of 300 pixels (spec: Liu et al., Caffe)."""
    least, most = (30, 60, 111, 162, 213, 264), (60, 111, 162, 213, 264, 315)
    return DefaultBoxes(
        [(38, 38), (19, 19), (10, 10), (5, 5), (3, 3), (1, 1)],
        [(a / 300, b / 300) for a, b in zip(least, most, strict=True)],
        [(2,), (2, 3), (2, 3), (2, 3), (2,), (2,)],
        steps=[s / 300 for s in (8, 16, 32, 64, 100, 300)],
    )


def random_boxes(random, *shape):
    low = random.uniform(0, 0.6, (*shape, 2))
    sides = random.uniform(0.05, 0.4, (*shape, 2))
    return np.concatenate([low, low + sides], -1).astype("float32")


def test_iou_of_two_boxes_by_hand():
    first = np.array([[10.0, 20, 110, 120], [0, 0, 0, 5]])
    second = np.array([[30.0, 40, 60, 90], [0, 0, 0, 5], [200, 200, 210, 210]])
    np.testing.assert_allclose(iou(first, second), [[0.15, 0, 0], [0, 0, 0]])


@pytest.mark.parametrize("tensors", [False, True])
def test_iou_and_offsets_are_keras_s(tensors):
    random = np.random.default_rng(0)
    boxes, others = random_boxes(random, 40), random_boxes(random, 30)
    anchors = random_boxes(random, 40)
    own = keras.ops.convert_to_tensor if tensors else np.asarray
    tools = keras.utils.bounding_boxes
    np.testing.assert_allclose(
        iou(own(boxes), own(others)),
        tools.compute_iou(boxes, others, bounding_box_format="yxyx"),
        atol=1e-5,  # Keras adds a little to each union
    )
    offsets = encode(own(boxes), own(to_centers(anchors)), (0.1, 0.2))
    theirs = tools.encode_box_to_deltas(
        anchors,
        boxes,
        anchor_format="yxyx",
        box_format="yxyx",
        encoding_format="center_yxhw",
        variance=[0.1, 0.1, 0.2, 0.2],
        image_shape=(1, 1, 3),
    )
    np.testing.assert_allclose(offsets, theirs, rtol=1e-4, atol=1e-4)
    back = decode(offsets, own(to_centers(anchors)), (0.1, 0.2))
    np.testing.assert_allclose(back, boxes, atol=1e-6)
    np.testing.assert_allclose(to_corners(to_centers(boxes)), boxes, atol=1e-6)


def test_default_boxes_of_ssd300_are_the_paper_s():
    boxes, pixels = ssd300(), ssd300().centers() * 300
    assert boxes.count == len(pixels) == 8732
    assert boxes.boxes_per_place == (4, 6, 6, 6, 4, 4)
    np.testing.assert_allclose(pixels[:4, :2], 4, atol=1e-4)
    height_width = [(30, 30), (42.43, 42.43), (21.21, 42.43), (42.43, 21.21)]
    np.testing.assert_allclose(pixels[:4, 2:], height_width, atol=0.01)
    np.testing.assert_allclose(pixels[-4:, :2], 150, atol=1e-4)
    last = [(264, 264), (288.4, 288.4), (186.7, 300), (300, 186.7)]
    np.testing.assert_allclose(pixels[-4:, 2:], last, atol=0.05)
    # Rows of a level are (y, x, box): the second place lies to the right.
    np.testing.assert_allclose(pixels[4, :2], (4, 12), atol=1e-4)
    np.testing.assert_allclose(pixels[4 * 38, :2], (12, 4), atol=1e-4)
    assert DefaultBoxes.from_config(boxes.to_config()) == boxes


def test_sizes_rise_evenly():
    boxes = ssd_boxes([(8, 8), (4, 4), (2, 2), (1, 1)])
    np.testing.assert_allclose(
        boxes.sizes, [(0.1, 0.2), (0.2, 0.55), (0.55, 0.9), (0.9, 1.25)]
    )
    assert ssd_boxes([(4, 4)]).sizes == ((0.1, 0.9),)
    np.testing.assert_allclose(ssd_boxes([(4, 4), (2, 2)]).sizes[1], (0.9, 1.7))


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"sizes": [(0.1, 0.2)]}, "of 2 levels"),
        ({"sizes": [(0.2, 0.1), (0.2, 0.3)]}, "0 < s <= s'"),
        ({"ratios": [(2,), (0.0,)]}, "ratios"),
        ({"variances": (0.1,)}, "variances"),
        ({"feature_shapes": [(4, 4), (0, 2)]}, "feature_shapes"),
        ({"steps": [0.1]}, "steps"),
    ],
)
def test_what_makes_no_boxes_is_refused(changed, named):
    good = {
        "feature_shapes": [(4, 4), (2, 2)],
        "sizes": [(0.1, 0.2), (0.2, 0.4)],
        "ratios": [(2,), (2,)],
    }
    assert DefaultBoxes(**good).count == 80
    with pytest.raises(BoxError, match=named):
        DefaultBoxes(**(good | changed))


def test_a_file_knows_the_boxes_of_its_model(tmp_path):
    boxes = ssd_boxes([(2, 2)])
    inputs = keras.Input((boxes.count, 4))
    model = keras.Model(inputs, DefaultBoxesLayer(boxes, name="boxes")(inputs))
    model.save(tmp_path / "m.keras")
    assert default_boxes_of(keras.models.load_model(tmp_path / "m.keras")) == boxes
    nested = keras.Sequential([model])
    assert default_boxes_of(nested) == boxes
    assert default_boxes_of(keras.Sequential([keras.layers.Dense(1)])) is None
    with pytest.raises(BoxError, match=f"{boxes.count}, 4"):
        DefaultBoxesLayer(boxes)(keras.Input((boxes.count + 1, 4)))
