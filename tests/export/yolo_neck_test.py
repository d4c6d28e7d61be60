"""A detector in the manner of YOLOv3, which nothing here knows, through a file."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import gmpq_tf as gmpq
from gmpq_tf.detection import BoxError, suppress
from gmpq_tf.export.tflite import export_tflite
from gmpq_tf.export.tflite.runtime import TFLiteModel

layers = keras.layers
IMAGES = np.random.default_rng(0).random((6, 32, 32, 3), np.float32)


def leaky(x, filters, strides=1):
    x = layers.Conv2D(filters, 3, strides, padding="same", use_bias=False)(x)
    return layers.LeakyReLU(negative_slope=0.1)(layers.BatchNormalization()(x))


@pytest.fixture(scope="module")
def detector():
    """Two raw maps; the finer one reads the coarser one, and an earlier map."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((32, 32, 3), name="image")
    fine = leaky(leaky(inputs, 8, 2), 8, 2)
    coarse = leaky(fine, 12, 2)
    x = layers.UpSampling2D(2)(leaky(coarse, 6))
    x = leaky(layers.Concatenate()([x, fine]), 8)
    maps = [
        layers.Conv2D(3 * 7, 1, name="coarse")(coarse),
        layers.Conv2D(3 * 7, 1, name="fine")(x),
    ]
    model = keras.Model(inputs, maps)
    model.compile(loss="mse")
    return model


@pytest.mark.slow
def test_a_searched_policy_is_exact_in_the_file(detector, tmp_path):
    result = gmpq.search_policy(
        detector,
        IMAGES,
        strategy="loss_delta",
        budget="W6A6",
        space=gmpq.SearchSpace((4, 8), (4, 8)),
        progress="none",
    )
    assert len({bits.weight_bits for bits in result.policy.layers.values()}) > 1
    student = gmpq.quantize_model(detector, result.policy)
    gmpq.calibrate(student, IMAGES)
    gmpq.snap_biases(student)
    path = tmp_path / "yolo.tflite"
    kinds = {"output_kinds": "numbers"}
    report = export_tflite(student, path, verify_data=IMAGES, **kinds)
    assert {each.kind for each in report.outputs} == {"numbers"}
    assert report.twin.off == 0 and not report.twin.unknown and not report.float_parts
    wanted = student.predict_on_batch(IMAGES)
    for found, own, each in zip(
        TFLiteModel(path).predict(IMAGES), wanted, report.outputs, strict=True
    ):
        assert found.shape == own.shape
        assert np.mean(np.abs(found - own) > 1e-6) < 0.01 and each.max_steps <= 1


def test_suppression_is_tensorflow_s_class_by_class():
    rng = np.random.default_rng(1)
    corner = rng.uniform(0, 0.6, (2, 40, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0.1, 0.4, corner.shape)], -1)
    scores = rng.uniform(0, 1, (2, 40, 3))
    found = suppress(boxes, scores, score_threshold=0.3, iou_threshold=0.4)
    for image in range(2):
        wanted = []
        for kind in range(3):
            kept = tf.image.non_max_suppression(
                boxes[image].astype("float32"),
                scores[image, :, kind].astype("float32"),
                40,
                0.4,
                0.3,
            )
            wanted += [(scores[image, i, kind], kind, i) for i in kept.numpy()]
        wanted.sort(reverse=True)
        own, classes, values = found.of_image(image)
        np.testing.assert_allclose(values, [w[0] for w in wanted], rtol=1e-6)
        assert classes.tolist() == [w[1] for w in wanted]
        places = [w[2] for w in wanted]
        np.testing.assert_allclose(own, boxes[image, places].clip(0, 1), atol=1e-6)


@pytest.mark.parametrize(
    "boxes, scores",
    [
        (np.zeros((1, 5, 4)), np.zeros((1, 6, 2))),
        (np.zeros((5, 4)), np.zeros((5, 2))),
        (np.full((1, 5, 4), np.inf), np.zeros((1, 5, 2))),
    ],
)
def test_boxes_that_do_not_fit_are_refused(boxes, scores):
    with pytest.raises(BoxError, match="Received"):
        suppress(boxes, scores)
