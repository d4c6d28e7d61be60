"""Latency of exported files over TensorFlow's own int8 file of the same network.

    python benchmarks/latency.py --student=runs/cifar10/finetune/model.keras \
        --model=resnet8.h5 [--output=results/.../latency.json]

All storages of the student, its float model, and what TFLiteConverter makes of the
float network by post-training quantization run in turns in one process on one thread;
only the ratios mean anything on another machine.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf

import gmpq_tf.layers  # noqa: F401  registers the layers that the student names
from gmpq_tf.export.float_model import float_tflite
from gmpq_tf.export.tflite.exporter import STORAGES
from gmpq_tf.export.tflite.lowering import lower
from gmpq_tf.export.tflite.runtime import latencies
from gmpq_tf.models import load_model

SAMPLES = 32
REFERENCE = "TFLiteConverter int8"


def post_training_int8(model: tf.keras.Model, low: float, high: float) -> bytes:
    """TFLiteConverter's int8 file of a float model.

    Args:
        model: the float network.
        low: smallest input value.
        high: largest; ranges are found on random inputs, since only time is measured.
    """
    random = np.random.default_rng(0)

    def samples() -> Iterator[list[np.ndarray]]:
        for _ in range(SAMPLES):
            shape = (1, *model.input_shape[1:])
            yield [random.uniform(low, high, shape).astype("float32")]

    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = samples
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    return converter.convert()


def main() -> None:
    """Time everything in turns and print ratios over the converter's file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--student", required=True, help="model.keras of a fine-tuning")
    parser.add_argument("--model", required=True, help="the float network")
    parser.add_argument("--runs", type=int, default=400, help="timed runs of each file")
    parser.add_argument("--output", help="JSON file to write")
    args = parser.parse_args()
    student, model = load_model(args.student), load_model(args.model)
    contents = {storage: lower(student, storage).content for storage in STORAGES}
    contents["float"] = float_tflite(student)
    contents[REFERENCE] = post_training_int8(model, 0.0, 255.0)
    seconds = latencies(contents, args.runs)
    rows = {
        name: {
            "milliseconds": 1000 * value,
            "ratio": value / seconds[REFERENCE],
            "bytes": len(contents[name]),
        }
        for name, value in seconds.items()
    }
    for name, row in rows.items():
        print(
            f"{name:22s} {row['milliseconds']:7.3f} ms  x{row['ratio']:.2f}  "
            f"{row['bytes']:,} bytes"
        )
    if args.output:
        record = {"command": " ".join(["python", *sys.argv]), "rows": rows}
        record["versions"] = {
            "python": platform.python_version(),
            "tensorflow": tf.__version__,
        }
        Path(args.output).write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
