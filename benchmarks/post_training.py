"""MobileNetV2 on ImageNet photographs, calibrated and exported without training.

    python benchmarks/post_training.py --weights=mobilenet_v2_imagenet.weights.h5 \
        --data=tfds/nips2017_dev/1.0.0 --output=results/mobilenet_v2/summary.json

For each policy: top-1 of the Keras model (fake quantization; compiled as `predict`
does, and run op by op) and of its .tflite on the same photographs, their agreement, the
file's bytes and the latency of each storage.
`--data` is a TFDS folder with "image" and "label"; ranges are calibrated on its first
photographs, 256 pixels on the shorter side and the middle 224 of them.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

import gmpq_tf as gmpq
from gmpq_tf.export.tflite import export_tflite
from gmpq_tf.export.tflite.runtime import TFLiteModel
from gmpq_tf.graph import layer_macs

SIDE, CROP, BATCH = 256, 224, 50


def photographs(folder: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Batches of (images in -1..1, labels).

    Args:
        folder: of a TFDS data set with "image" and "label".

    Returns:
        All of it, in stored order.
    """
    builder = tfds.builder_from_directory(folder)
    (split,) = builder.info.splits
    dataset = builder.as_dataset(split=split).map(
        lambda x: (prepare(x["image"]), x["label"])
    )
    return list(dataset.batch(BATCH).as_numpy_iterator())


def prepare(image: tf.Tensor) -> tf.Tensor:
    """Shorter side to 256 pixels, the middle 224 x 224, values -1..1."""
    size = tf.cast(tf.shape(image)[:2], tf.float32)
    scaled = tf.cast(tf.round(size * SIDE / tf.reduce_min(size)), tf.int32)
    image = tf.image.resize(image, scaled, antialias=True)
    image = tf.image.resize_with_crop_or_pad(image, CROP, CROP)
    return image / 127.5 - 1


def mixed_policy(model: keras.Model) -> gmpq.BitwidthPolicy:
    """Activations of 8 bits; kernels of 4 to 8, more where there is less to gain.

    The two widest convolutions get 4, those with more multiply-adds than the median
    layer 6; depthwise kernels, the others and both ends keep 8.
    """
    uniform = gmpq.BitwidthPolicy.uniform(model, 8, 8)
    macs = layer_macs(model)
    names = list(macs)[1:-1]
    median = np.median([macs[name] for name in names])
    largest = sorted(names, key=lambda n: -model.get_layer(n).kernel.shape[-1])[:2]
    bits = {name: (b.weight_bits, b.activation_bits) for name, b in uniform.items()}
    for name in names:
        depthwise = isinstance(model.get_layer(name), keras.layers.DepthwiseConv2D)
        if depthwise:
            continue
        bits[name] = (4 if name in largest else 6 if macs[name] > median else 8, 8)
    return gmpq.BitwidthPolicy(model.name, bits)


def policies(model: keras.Model) -> Iterator[tuple[str, gmpq.BitwidthPolicy]]:
    """The policies compared."""
    yield "W8A8", gmpq.BitwidthPolicy.uniform(model, 8, 8)
    yield "W8A6", gmpq.BitwidthPolicy.uniform(model, 8, 6)
    yield "mixed W4-8 A8", mixed_policy(model)


def accuracy(predict, batches: list) -> float:  # type: ignore[no-untyped-def]
    """Share of photographs whose largest score is the label's."""
    right = [np.argmax(predict(x), -1) == y for x, y in batches]
    return float(np.concatenate(right).mean())


def measure(model: keras.Model, policy: gmpq.BitwidthPolicy, batches: list) -> dict:
    """Calibrate, export, and run the Keras model and the file on all photographs."""
    student = gmpq.quantize_model(model, policy)
    gmpq.calibrate(student, batches[:2])
    gmpq.snap_biases(student)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tflite"
        report = export_tflite(
            student, path, verify_data=iter(batches), least_agreement=0.0
        )
        file = TFLiteModel(path)
        return {
            "gbops": gmpq.count_cost(model, policy).bit_ops / 1e9,
            "keras": report.keras_accuracy,
            "keras_eager": accuracy(lambda x: student(x, training=False), batches),
            "tflite": accuracy(lambda x: file.predict(x, BATCH), batches),
            "agreement": report.agreement,
            "builtin_agreement": report.builtin_agreement,
            "codes_equal": all(layer.codes_equal for layer in report.layers),
            "storage_bytes": report.storage_bytes,
            "latency_ms": report.latency_ms,
        }


def main() -> None:
    """Measure every policy, print a line each, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", required=True, help="of keras.applications")
    parser.add_argument("--data", required=True, help="folder of a TFDS data set")
    parser.add_argument("--output", help="JSON file to write")
    args = parser.parse_args()
    model = keras.applications.MobileNetV2(
        weights=None, classifier_activation=None, input_shape=(CROP, CROP, 3)
    )
    model.load_weights(args.weights)
    batches = photographs(args.data)
    rows = {"float": {"keras": accuracy(model.predict_on_batch, batches)}}
    print(f"float: {rows['float']['keras']:.2%}", flush=True)
    for name, policy in policies(model):
        rows[name] = measure(model, policy, batches)
        row = rows[name]
        print(
            f"{name}: Keras {row['keras']:.2%} ({row['keras_eager']:.2%} op by op), "
            f".tflite {row['tflite']:.2%}, "
            f"agreement {row['agreement']:.2%}, bytes {row['storage_bytes']}, "
            f"ms {row['latency_ms']}",
            flush=True,
        )
    if args.output:
        record = {
            "command": " ".join(["python", *sys.argv]),
            "images": sum(len(y) for _, y in batches),
            "rows": rows,
            "versions": {
                "python": platform.python_version(),
                "tensorflow": tf.__version__,
                "keras": keras.__version__,
            },
        }
        Path(args.output).write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
