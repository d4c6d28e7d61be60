"""What each option of quantization without training is worth, on real images.

    python benchmarks/post_training_options.py --network=resnet8 \
        --weights=mlperf_tiny_resnet8_cifar10.h5 --data=tfds --bits=4,8 --bits=3,4 \
        --used=512 --tested=2000 --output=results/post_training/resnet8.json

Each option is applied to a student with nearest rounding and ranges of least squared
error. `--used` images without labels calibrate, measure and learn; accuracy is on
`--tested` others, and the difference to the first row on the same images is given with
how many images changed sides.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

import gmpq_tf as gmpq
from gmpq_tf.post_training import correct_biases, equalize, learn_rounding

SIDE, CROP, BATCH = 256, 224, 50
Images = tuple[np.ndarray, np.ndarray]


def cifar10(
    folder: str, used: int, tested: int, skipped: int = 0
) -> tuple[Images, Images]:
    """The first images of training and of test data, 0..255; none need be skipped."""
    parts = [
        tfds.load("cifar10", data_dir=folder, download=False, split=f"{name}[:{count}]")
        for name, count in (("train", used), ("test", tested))
    ]
    return tuple(_arrays(part, lambda image: image) for part in parts)  # type: ignore[return-value]


def photographs(
    folder: str, used: int, tested: int, skipped: int = 0
) -> tuple[Images, Images]:
    """The first ImageNet photographs, and others after those skipped, -1..1."""
    builder = tfds.builder_from_directory(folder)
    (split,) = builder.info.splits
    images, labels = _arrays(
        builder.as_dataset(split=split).take(used + skipped + tested), _photograph
    )
    rest = slice(used + skipped, None)
    return (images[:used], labels[:used]), (images[rest], labels[rest])


def _photograph(image: tf.Tensor) -> tf.Tensor:
    """Shorter side to 256 pixels, the middle 224 x 224, values -1..1."""
    size = tf.cast(tf.shape(image)[:2], tf.float32)
    scaled = tf.cast(tf.round(size * SIDE / tf.reduce_min(size)), tf.int32)
    image = tf.image.resize(image, scaled, antialias=True)
    return tf.image.resize_with_crop_or_pad(image, CROP, CROP) / 127.5 - 1


def _arrays(dataset: tf.data.Dataset, prepare: Callable[[Any], Any]) -> Images:
    pairs = [(prepare(x["image"]), x["label"]) for x in dataset]
    images = np.stack([np.asarray(image, "float32") for image, _ in pairs])
    return images, np.array([int(label) for _, label in pairs])


def resnet8(weights: str) -> keras.Model:
    """MLPerf Tiny's network, as it is stored."""
    return keras.models.load_model(weights, compile=False)


def mobilenet_v2(weights: str) -> keras.Model:
    """`keras.applications.MobileNetV2` with stored weights, logits."""
    model = keras.applications.MobileNetV2(
        weights=None, classifier_activation=None, input_shape=(CROP, CROP, 3)
    )
    model.load_weights(weights)
    return model


NETWORKS = {"resnet8": (resnet8, cifar10), "mobilenet_v2": (mobilenet_v2, photographs)}


def options(steps: int, batch_size: int) -> dict[str, dict[str, Any]]:
    """Option -> what differs from nearest rounding with ranges of least error."""
    rounding = {"steps": steps, "batch_size": batch_size}
    return {
        "nearest": {},
        "max": {"method": "max"},
        "percentile": {"method": "percentile"},
        "entropy": {"method": "entropy"},
        "equalized": {"equalize": "skip"},
        "equalized, ReLU for ReLU6": {"equalize": "relu"},
        "statistics": {"statistics": True},
        "corrected": {"correct": True},
        "learned rounding": {"rounding": rounding},
        "learned rounding, corrected": {"rounding": rounding, "correct": True},
    }


def student_with(
    model: keras.Model, bits: tuple[int, int], used: np.ndarray, option: dict
) -> keras.Model:
    """A student of uniform bits with one row of `options`, biases rounded."""
    if "equalize" in option:
        model, _ = equalize(model, option["equalize"])
    student = gmpq.quantize_model(model, gmpq.BitwidthPolicy.uniform(model, *bits))
    gmpq.calibrate(student, used, method=option.get("method", "squared_error"))
    if "rounding" in option:
        learn_rounding(student, model, used, **option["rounding"])
    if option.get("correct"):
        correct_biases(student, model, used)
    gmpq.snap_biases(student, used if option.get("statistics") else None)
    return student


def right(model: keras.Model, images: Images) -> np.ndarray:
    """Whether each image's largest score is its label's."""
    scores = model.predict(images[0], batch_size=BATCH, verbose=0)
    return np.argmax(scores, -1) == images[1]


def row_of(hits: np.ndarray, first: np.ndarray | None, seconds: float) -> dict:
    """Figures of one option; `first` are the hits of the one compared with."""
    row = {"accuracy": float(hits.mean()), "seconds": round(seconds, 1)}
    if first is not None:
        row["gained"] = int((hits & ~first).sum())
        row["lost"] = int((~hits & first).sum())
    return row


def main() -> None:
    """Measure every option at every bit-width, print a line each, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", required=True, choices=NETWORKS)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--data", required=True, help="folder of TFDS data")
    parser.add_argument("--bits", action="append", required=True, help="weights,inputs")
    parser.add_argument("--used", type=int, default=512)
    parser.add_argument("--tested", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=300, help="of learned rounding")
    parser.add_argument("--batch_size", type=int, default=32, help="likewise")
    parser.add_argument("--only", action="append", help="options; default: all")
    parser.add_argument("--output", help="JSON file to write")
    args = parser.parse_args()
    build, load = NETWORKS[args.network]
    model = build(args.weights)
    used, tested = load(args.data, args.used, args.tested)
    rows: dict[str, Any] = {"float": row_of(right(model, tested), None, 0.0)}
    print(f"float: {rows['float']['accuracy']:.2%}", flush=True)
    warnings.simplefilter("ignore")
    record = {
        "command": " ".join(["python", *sys.argv]),
        "used": len(used[1]),
        "tested": len(tested[1]),
        "rows": rows,
        "versions": {
            "python": platform.python_version(),
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
        },
    }
    for text in args.bits:
        weight_bits, input_bits = map(int, text.split(","))
        first = None
        for name, option in options(args.steps, args.batch_size).items():
            if args.only and name not in args.only:
                continue
            start = perf_counter()
            student = student_with(model, (weight_bits, input_bits), used[0], option)
            seconds = perf_counter() - start
            hits = right(student, tested)
            row = row_of(hits, first, seconds)
            first = hits if first is None else first
            rows[f"W{weight_bits}A{input_bits} {name}"] = row
            print(f"W{weight_bits}A{input_bits} {name}: {row}", flush=True)
            if args.output:  # a run that is cut off leaves what it has measured
                Path(args.output).write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
