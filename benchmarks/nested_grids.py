"""What it costs that grids nest: steps that are powers of two against free ones.

    python benchmarks/nested_grids.py --model=pretrainedResnet.h5 \
        --data_dir=TFDS_FOLDER --output=results/nested_grids/summary.json

Where a layer reads an 8-bit tensor that others read too, `quantize_model` keeps both
steps powers of two, so that moving from one grid to the other is exact in integer
kernels. Here the same student is trained with those steps free (learned), with the same
seed, images and epochs; accuracies are those of Keras and of the .tflite on the test
images, and the agreement says what is lost on the way into the file.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from pathlib import Path

import keras
import tensorflow as tf

import gmpq_tf as gmpq
from gmpq_tf.data import DataConfig, Dataset, load_dataset
from gmpq_tf.export.tflite import export_tflite
from gmpq_tf.models import load_model
from gmpq_tf.transform.calibrate import input_quantizers

KINDS = {"nested": True, "free": False}


def free_steps(student: keras.Model) -> int:
    """Let training change every step that is a power of two; return how many."""
    nested = [q for q in input_quantizers(student) if q.power_of_two]
    for quantizer in nested:
        quantizer.power_of_two = False
        quantizer.learn_range = True
        quantizer.log2_range.trainable = True
    return len(nested)


def measure(
    model: keras.Model, data: Dataset, bits: int, nested: bool, epochs: int
) -> dict:
    """Accuracy of one student, calibrated and fine-tuned, in Keras and its file."""
    keras.utils.set_random_seed(0)
    policy = gmpq.BitwidthPolicy.uniform(model, bits, bits)
    student = gmpq.quantize_model(model, policy)
    steps = sum(q.power_of_two for q in input_quantizers(student))
    if not nested:
        free_steps(student)
    gmpq.calibrate(student, data.calibration())
    rate = keras.optimizers.schedules.CosineDecay(1e-3, epochs * data.steps_per_epoch)
    loss = keras.losses.SparseCategoricalCrossentropy()
    student.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
    calibrated = student.evaluate(data.test(), verbose=0, return_dict=True)
    batches = data.train(epochs=epochs)
    student.fit(batches, epochs=epochs, steps_per_epoch=data.steps_per_epoch, verbose=0)
    gmpq.snap_biases(student, data.train(epochs, epochs=1).take(16))
    with tempfile.TemporaryDirectory() as folder:
        report = export_tflite(
            student,
            Path(folder) / "model.tflite",
            verify_data=data.test(),
            latency_runs=0,
            least_agreement=0.0,
        )
    return {
        "power_of_two_steps": steps if nested else 0,
        "calibrated": calibrated["accuracy"],
        "keras": report.keras_accuracy,
        "tflite": report.tflite_accuracy,
        "agreement": report.agreement,
        "builtin_agreement": report.builtin_agreement,
    }


def main() -> None:
    """Measure every bit-width with nested and with free steps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="float CIFAR-10 network, 0..255")
    parser.add_argument("--data_dir", help="TFDS folder that holds cifar10")
    parser.add_argument("--bits", type=int, nargs="+", default=[3, 2])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--output", help="JSON file to write")
    args = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    model = load_model(args.model)
    config = DataConfig(
        "cifar10", data_dir=args.data_dir, scaling="0..255", batch_size=128
    )
    data, rows = load_dataset(config), {}
    for bits in args.bits:
        for kind, nested in KINDS.items():
            name = f"W{bits}A{bits} {kind}"
            rows[name] = measure(model, data, bits, nested, args.epochs)
            print(name, json.dumps(rows[name]), flush=True)
    if args.output:
        record = {"command": " ".join(["python", *sys.argv]), "rows": rows}
        record["versions"] = {
            "python": platform.python_version(),
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
        }
        Path(args.output).write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
