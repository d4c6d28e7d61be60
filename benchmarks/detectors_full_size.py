"""What a paper-size detector takes to quantize, train a step, export and verify.

    python benchmarks/detectors_full_size.py --model=faster_rcnn_resnet18 \
        --height=600 --width=1000 --data_dir=TFDS --output=results/faster_rcnn/full.json

Photographs and boxes of `voc/2012` from a folder of TFDS; weights are new, so no
accuracy is claimed. Seconds are of a machine that does other work too; peak memory is
the process's so far.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

import gmpq_tf as gmpq
from gmpq_tf.export.tflite import export_tflite
from gmpq_tf.export.tflite.region_detector import open_tflite
from gmpq_tf.models import build_model
from gmpq_tf.task.tasks import task_of

MOST_OBJECTS = 64
PACKAGES = ("tensorflow", "keras", "numpy", "ai-edge-litert")


def photographs(folder: str, size: tuple[int, int], count: int) -> tuple[Any, Any]:
    """Images 0 to 1, float32 [count, height, width, 3], and their objects."""
    found = tfds.load("voc/2012", split="validation", data_dir=folder, download=False)
    images: list[np.ndarray] = []
    boxes: np.ndarray = np.zeros((count, MOST_OBJECTS, 4), np.float32)
    classes: np.ndarray = np.full((count, MOST_OBJECTS), -1, np.int32)
    for number, row in enumerate(found.take(count)):
        images.append(np.asarray(tf.image.resize(row["image"], size)) / np.float32(255))
        own = np.asarray(row["objects"]["bbox"])[:MOST_OBJECTS]
        boxes[number, : len(own)] = own
        labels = np.asarray(row["objects"]["label"])[:MOST_OBJECTS]
        classes[number, : len(own)] = labels
    return np.stack(images), {"boxes": boxes, "classes": classes}


class Steps:
    """Seconds and peak memory of each step."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, float]] = {}
        self.start = time.perf_counter()

    def done(self, name: str) -> None:
        """Ends a step, and begins the next."""
        seconds = time.perf_counter() - self.start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        self.rows[name] = {"seconds": round(seconds, 1), "peak_gib": round(peak, 2)}
        print(name, self.rows[name], flush=True)
        self.start = time.perf_counter()


def main() -> None:
    """Goes through all steps and writes what they took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="faster_rcnn_resnet18")
    parser.add_argument("--height", type=int, default=600)
    parser.add_argument("--width", type=int, default=1000)
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--output")
    args = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    keras.utils.set_random_seed(0)
    size = args.height, args.width
    images, labels = photographs(args.data_dir, size, args.images)
    steps = Steps()
    model = build_model(args.model, (*size, 3), 20)
    policy = gmpq.BitwidthPolicy.uniform(model, args.bits, args.bits)
    student = gmpq.quantize_model(model, policy)
    steps.done("built and quantized")
    gmpq.calibrate(student, images[:1])
    steps.done("calibrated on one photograph")
    task = task_of(student)
    student.compile(keras.optimizers.SGD(1e-3), loss=task.loss())
    targets = task.targets(labels)
    own = keras.tree.map_structure(lambda each: each[:1], targets)
    losses = student.train_on_batch(images[:1], own, return_dict=True)
    steps.done("one training step on one photograph")
    gmpq.snap_biases(student)
    steps.done("biases rounded")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tflite"
        report = export_tflite(
            student,
            path,
            "smallest",
            verify_data=images,
            scaling="0..1",
            latency_runs=0,
        )
        steps.done(f"exported and verified on {args.images} photographs")
        found = open_tflite(path).predict(images[:1])
        steps.done("files run on one photograph")
    wanted = student.predict_on_batch(images[:1])
    gaps = {
        name: float(np.abs(have - wanted[name]).max())
        for have, name in zip(found, sorted(wanted), strict=True)
    }
    cost = gmpq.count_cost(model, policy)
    result = {
        "model": args.model,
        "size": size,
        "policy": f"W{args.bits}A{args.bits}, ends 8",
        "steps": steps.rows,
        "losses": {name: float(value) for name, value in losses.items()},
        "gbops": cost.bit_ops / 1e9,
        "file_bytes": report.storage_bytes,
        "integers": report.twin.codes if report.twin else None,
        "integers_off": report.twin.off if report.twin else None,
        "agreement": report.agreement,
        "largest_gap_to_keras": gaps,
        "processor": platform.machine(),
        "versions": {name: version(name) for name in PACKAGES},
    }
    print(json.dumps(result, indent=1))
    if args.output:
        Path(args.output).parent.mkdir(parents=True, exist_ok=True)
        Path(args.output).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
