"""Count the integers of a file that its integer twin computes otherwise.

    python benchmarks/exactness.py --output=results/exactness/measured.jsonl \
        --weights=mobilenet_v2_imagenet.weights.h5 --data=tfds/nips2017_dev/1.0.0
    python benchmarks/exactness.py --output=results/exactness/measured.jsonl

With `--data`: MobileNetV2 with ImageNet weights on photographs, in every storage.
Without: networks of keras.applications at their own size with random kernels and the
statistics of random images, on random images, in every storage. One line of JSON a case
is added to `--output`; cases that it holds are not measured again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import applications
from post_training import photographs

import gmpq_tf as gmpq
from gmpq_tf.export.tflite.arguments import STORAGES
from gmpq_tf.export.tflite.lowering import lower
from gmpq_tf.export.tflite.runtime import TFLiteModel, processor
from gmpq_tf.export.tflite.twin import integer_twin
from gmpq_tf.export.tflite.twin.compare import compare_twin

# Network -> image size, and the largest pixel value it takes (least is minus that, or
# 0 where pixels are scaled inside).
ZOO = {
    "MobileNet": (224, 1),
    "EfficientNetV2B0": (224, 255),
    "MobileNetV2": (224, 1),
    "MobileNetV3Small": (224, 255),
    "MobileNetV3Large": (224, 255),
    "EfficientNetB0": (224, 255),
    "NASNetMobile": (224, 1),
    "DenseNet121": (224, 1),
    "ResNet50V2": (224, 1),
    "InceptionV3": (299, 1),
    "Xception": (299, 1),
    "VGG19": (224, 1),
}
# Images of each of the first four batches, and what one image holds.
CLASSES, CALIBRATION, PIXELS = 100, 25, 224 * 224
BITS = ((8, 8), (4, 8))
CASE = ("network", "images_are", "bits", "storage")
Images = list[tuple[np.ndarray, np.ndarray | None]]


def main(options: argparse.Namespace) -> None:
    """Measures what `--output` does not hold."""
    tf.config.threading.set_intra_op_parallelism_threads(options.threads)
    output = Path(options.output)
    lines = output.read_text().splitlines() if output.exists() else []
    known = {case_of(json.loads(line)) for line in lines}
    for network in ["MobileNetV2"] if options.data else ZOO:
        make = imagenet if options.data else random_network
        measure_network(network, options, make, known)


def case_of(row: dict[str, Any]) -> tuple:
    """What tells one measurement from another."""
    return tuple(row[key] for key in CASE)


def measure_network(
    name: str, options: argparse.Namespace, make: Callable, known: set
) -> None:
    """Appends a line for each pair of bits and each storage of a network."""
    kind = "photographs" if options.data else "random"
    cases = [(name, kind, f"W{w}A{a}", s) for w, a in BITS for s in STORAGES]
    if known.issuperset(cases):
        return
    model, batches = make(name, options)
    for weight_bits, activation_bits in BITS:
        student = calibrated(model, weight_bits, activation_bits, batches)
        for storage in STORAGES:
            case = (name, kind, f"W{weight_bits}A{activation_bits}", storage)
            if case in known:
                continue
            row = dict(zip(CASE, case, strict=True))
            row |= measure(student, storage, batches) | {"machine": processor()}
            with Path(options.output).open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(row, flush=True)


def imagenet(name: str, options: argparse.Namespace) -> tuple[keras.Model, Images]:
    """MobileNetV2 with trained weights, and photographs with their labels."""
    model = applications.MobileNetV2(weights=None, classifier_activation=None)
    model.load_weights(options.weights)
    halves = [(x[i::2], y[i::2]) for x, y in photographs(options.data) for i in (0, 1)]
    return model, halves


def random_network(name: str, options: argparse.Namespace) -> tuple[Any, Images]:
    """A network with random kernels and the statistics of images, and the images."""
    size, largest = ZOO[name]
    keras.utils.set_random_seed(0)
    build = getattr(applications, name)
    model = build(weights=None, input_shape=(size, size, 3), classes=CLASSES)
    random = np.random.default_rng(0)
    color = random.uniform(0, 1, (options.images, 1, 1, 3))
    noise = random.uniform(0, 1, (options.images, size, size, 3))
    low = 0 if largest == 255 else -largest
    x = (low + (color + noise) / 2 * (largest - low)).astype("float32")
    norms = [n for n in model.layers if isinstance(n, keras.layers.BatchNormalization)]
    for norm in norms:
        norm.momentum = 0.0
    model(x[:8], training=True)  # statistics of these
    for norm in norms:
        norm.momentum = 0.99
    return model, [(x[i : i + 8], None) for i in range(0, len(x), 8)]


def calibrated(model: Any, weights: int, activations: int, batches: Images) -> Any:
    """The quantized model, with ranges from the first images."""
    policy = gmpq.BitwidthPolicy.uniform(model, weights, activations)
    student = gmpq.quantize_model(model, policy)
    gmpq.calibrate(student, [x[:CALIBRATION] for x, _ in batches[:4]])
    gmpq.snap_biases(student)
    return student


def measure(student: Any, storage: str, batches: Images) -> dict[str, Any]:
    """Every integer of every image, and what student, twin and file decide."""
    content = lower(student, storage).content
    file, twin = TFLiteModel(content), integer_twin(student, storage)
    codes = off = images = 0
    most = max(1, 4 * PIXELS // int(np.prod(batches[0][0].shape[1:3])))
    runs = {"file": file.predict, "twin": run_of(twin), "student": run_of(student)}
    found: dict[str, list] = {name: [] for name in runs}
    seconds = dict.fromkeys(runs, 0.0)
    for x, _ in batches:
        for start in range(0, len(x), most):
            check = compare_twin(content, [x[start : start + most]])
            codes, off = codes + check.codes, off + check.off
        for name, run in runs.items():
            if not images:
                run(x)  # compiles
            start_time = time.perf_counter()
            found[name].append(run(x))
            seconds[name] += time.perf_counter() - start_time
        images += len(x)
    scores = {name: np.concatenate(parts) for name, parts in found.items()}
    decided = {name: value.argmax(-1) for name, value in scores.items()}
    row = {
        "images": images,
        "tensors": check.tensors,
        "integers": codes,
        "off": off,
        "file_bytes": len(content),
        "agreement": {n: share(decided[n], decided["file"]) for n in runs},
        "largest_difference": {
            n: float(np.max(np.abs(scores[n] - scores["file"]))) for n in runs
        },
        "seconds_an_image": {n: round(s / images, 5) for n, s in seconds.items()},
    }
    if batches[0][1] is not None:
        labels = np.concatenate([y for _, y in batches if y is not None])
        row["accuracy"] = {n: share(d, labels) for n, d in decided.items()}
    return row


def run_of(model: keras.Model) -> Callable[[np.ndarray], np.ndarray]:
    """The scores of a batch, compiled."""
    return lambda x: np.asarray(model.predict_on_batch(x))


def share(one: np.ndarray, other: np.ndarray) -> float:
    """Of equal values."""
    return float(np.mean(one == other))


def arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", required=True)
    parser.add_argument("--weights")
    parser.add_argument("--data", help="TFDS folder; none: random images and kernels")
    parser.add_argument("--images", type=int, default=32, help="random ones")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main(arguments())
