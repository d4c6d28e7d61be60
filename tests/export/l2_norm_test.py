"""The L2 norm of a detector's source map: refused by name, or computed in float."""

import keras
import numpy as np
import pytest

import gmpq_tf as gmpq
from gmpq_tf.detection import DefaultBoxesLayer, ssd_boxes
from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.tflite import export_tflite
from gmpq_tf.export.tflite.runtime import TFLiteModel
from gmpq_tf.models.ssd import _normalized

layers = keras.layers
IMAGES = np.random.default_rng(0).random((6, 16, 16, 3), np.float32)


@pytest.fixture(scope="module")
def student():
    """One level, normalized over its channels; W4A4 but for the ends."""
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((16, 16, 3), name="image")
    x = layers.ReLU()(layers.Conv2D(8, 3, strides=2, padding="same", name="stem")(x))
    x = layers.ReLU()(layers.Conv2D(8, 3, padding="same", name="stage4_conv3")(x))
    x = _normalized(x, "l2")
    boxes = ssd_boxes([(8, 8)])
    count = boxes.count // 64
    rows = {}
    for name, width in (("boxes", 4), ("scores", 3)):
        y = layers.Conv2D(count * width, 3, padding="same", name=f"{name}0")(x)
        rows[name] = layers.Reshape((-1, width), name=f"{name}_rows")(y)
    rows["boxes"] = DefaultBoxesLayer(boxes, name="boxes")(rows["boxes"])
    model = keras.Model(inputs, rows)
    student = gmpq.quantize_model(model, gmpq.BitwidthPolicy.uniform(model, 4, 4))
    gmpq.calibrate(student, IMAGES)
    gmpq.snap_biases(student)
    return student


def test_it_is_refused_by_name_with_the_reason_and_a_remedy(student, tmp_path):
    with pytest.raises(ExportError, match=r"'stage4_norm'.*float_layers='allow'"):
        export_tflite(student, tmp_path / "d.tflite", verify_data=IMAGES)
    assert not (tmp_path / "d.tflite").exists()


def test_in_float_the_file_decides_as_keras_does(student, tmp_path):
    path = tmp_path / "d.tflite"
    report = export_tflite(
        student, path, verify_data=IMAGES, float_layers="allow", latency_runs=0
    )
    assert [part.name for part in report.float_parts] == ["stage4_norm"]
    outputs = student(IMAGES)
    file = TFLiteModel(path)
    names = [each["name"] for each in file.outputs]
    for name, found in zip(names, file.predict(IMAGES), strict=True):
        wanted = np.asarray(outputs[next(key for key in outputs if key in name)])
        off = np.abs(found - wanted) > 1e-5 * np.abs(wanted).max()
        assert off.mean() < 0.01  # a value beside a half may round otherwise
