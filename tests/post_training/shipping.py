"""What every student must still do after a correction."""

import numpy as np

import gmpq_tf as gmpq
from gmpq_tf.export.tflite import export_tflite


def check_ships(student, x, folder):
    """Saves, loads with the same outputs, and exports with equal codes."""
    gmpq.snap_biases(student)
    student.save(folder / "student.keras")
    loaded = gmpq.load_model(folder / "student.keras")
    np.testing.assert_array_equal(student(x), loaded(x))
    report = export_tflite(
        loaded, folder / "m.tflite", verify_data=x, least_agreement=0.0, latency_runs=1
    )
    assert report.layers
    assert all(layer.codes_equal for layer in report.layers)
