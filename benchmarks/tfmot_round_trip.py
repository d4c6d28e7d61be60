"""ResNet-8 through a file of TFMOT and back: what it computes at each stop.

    python benchmarks/tfmot_round_trip.py --weights=mlperf_tiny_resnet8_cifar10.h5 \
        --data=tfds --bits=8,8 --output=results/tfmot_round_trip/summary.json

MLPerf Tiny's ResNet-8, quantized without training (ranges from 512 training images), is
written for TFMOT, read again, turned into a Keras 3 student and exported to TFLite;
top-1 of all four on the test images of CIFAR-10.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow_datasets as tfds

import gmpq_tf as gmpq
from gmpq_tf.export import tfmot
from gmpq_tf.export.tflite import export_tflite
from gmpq_tf.export.tflite.runtime import TFLiteModel
from gmpq_tf.models import load_model

SEED, BATCH = 0, 500
PACKAGES = (
    "tensorflow",
    "keras",
    "tf_keras",
    "tensorflow-model-optimization",
    "ai-edge-litert",
)


def scores(model: Any, x: np.ndarray) -> np.ndarray:
    """Outputs of a model of either library, [N, classes]."""
    parts = [
        np.asarray(model(x[at : at + BATCH], training=False))
        for at in range(0, len(x), BATCH)
    ]
    return np.concatenate(parts)


def stops(model: keras.Model, bits: tuple[int, int], kept: Any, x: Any) -> Any:
    """Where the model comes by -> its scores."""
    policy = gmpq.BitwidthPolicy.uniform(model, *bits)
    student = gmpq.quantize_model(model, policy)
    gmpq.calibrate(student, kept)
    gmpq.snap_biases(student)
    yield "student", scores(student, x)
    with tempfile.TemporaryDirectory() as folder:
        path = tfmot.write_tfmot(student, policy, Path(folder, "model.h5"))
        wrapped = tfmot.load_model(path, compile=False)
        yield "tfmot", scores(wrapped, x)
        back = tfmot.to_student(wrapped)
        yield "student again", scores(back, x)
        file = Path(folder, "model.tflite")
        export_tflite(back, file, verify_data=x[:200], latency_runs=0)
        yield "tflite", TFLiteModel(file).predict(x)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--bits", action="append", required=True, help="such as 4,8")
    parser.add_argument("--output", required=True)
    arguments = parser.parse_args()
    keras.utils.set_random_seed(SEED)
    warnings.simplefilter("ignore")
    splits = ["train[:512]", f"test[:{arguments.images}]"]
    options = {"data_dir": arguments.data, "batch_size": -1, "download": False}
    kept, tested = tfds.load("cifar10", split=splits, **options)
    x, labels = tested["image"].numpy().astype("float32"), tested["label"].numpy()
    pixels = kept["image"].numpy().astype("float32")
    model = load_model(arguments.weights)
    path = Path(arguments.output)
    path.parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    result = {
        "python": sys.version.split()[0],
        **{name: version(name) for name in PACKAGES},
        "seed": SEED,
        "images": len(x),
        "rows": rows,
    }
    for text in arguments.bits:
        weight_bits, activation_bits = map(int, text.split(","))
        first: Any = None
        bits = (weight_bits, activation_bits)
        for stop, found in stops(model, bits, pixels, x):
            decided = found.argmax(-1)
            first = decided if first is None else first
            row = {
                "policy": f"W{bits[0]}A{bits[1]}",
                "stop": stop,
                "accuracy": float(np.mean(decided == labels)),
                "same_decisions": float(np.mean(decided == first)),
            }
            print(json.dumps(row), flush=True)
            rows.append(row)
            path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
