"""Files that return objects are measured as the raw outputs are."""

import pytest

from gmpq_tf.data import DataConfig, load_dataset
from gmpq_tf.export.tflite.exporter import export_tflite
from gmpq_tf.export.tflite.postprocess import PostProcess
from gmpq_tf.export.tflite.runtime import TFLiteModel
from gmpq_tf.train.evaluate import describe, measure_both
from tests.data.detection_sets import voc_kit
from tests.export.nets import detector, student_of


@pytest.mark.slow
def test_objects_of_a_file_have_the_precision_of_the_model(tmp_path):
    voc_kit(tmp_path / "data")
    config = DataConfig(str(tmp_path / "data"), image_size=32, augment="none")
    dataset = load_dataset(config)
    images = next(x for x, _ in dataset.calibration(4)).numpy()
    # Without training its scores are near each other, and many boxes overlap.
    student = student_of(detector(classes=2), 8, 8, x=images)
    results = {}
    for name, options in (("raw", None), ("found", PostProcess(200, 0.45, 0.01))):
        path = tmp_path / f"{name}.tflite"
        export_tflite(student, path, verify_data=images, postprocess=options)
        batches = dataset.validation().concatenate(dataset.test())
        names = dataset.class_names
        results[name] = measure_both(
            student, TFLiteModel(path), batches, class_names=names
        )
    raw, found = results["raw"], results["found"]
    assert raw["map_07"] is not None and raw["agreement"] == 1.0
    for figure in ("map_07", "map_area"):
        assert found[figure] == raw[figure]
        assert found[f"tflite_{figure}"] == pytest.approx(raw[figure], abs=0.005)
    assert found["agreement"] is None and found["tflite_accuracy"] is None
    line = describe("finetune", {**found, "split": "test"})
    assert "map_07 of .tflite" in line and "agreement" not in line
