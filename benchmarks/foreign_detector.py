"""A detector that was trained elsewhere, in integers, without training: YOLOv3-Nano.

    python benchmarks/foreign_detector.py --model=yolov3_nano_voc.keras \
        --heads=heads.json --calibration=VOC_FOLDER --voc=TFDS_FOLDER \
        --output=results/detection/yolov3_nano

`--model` is a functional Keras model with the raw maps of a YOLO head, [B, rows,
columns, anchors (5 + classes)] each; `--heads` a JSON list with the anchors (width,
height in pixels of the input) and scale_x_y of each. `--calibration` is a VOC folder
whose training images set ranges and choose bits, without labels; `--voc` a TFDS
data_dir that holds voc/2012, whose photographs measure. Three policies: W8A8, W6A6, and
4, 6 or 8 bits by loss_delta at the bit operations of W6A6. All are written as .tflite
files, which are measured too. Writes summary.json; what is finished is not done again.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import gmpq_tf as gmpq
from gmpq_tf.detection import Detections, MeanAP, suppress
from gmpq_tf.export.tflite import export_tflite
from gmpq_tf.export.tflite.runtime import TFLiteModel

CALIBRATION, VERIFIED, BATCH = 128, 4, 10  # images
VALUED = 16  # images that choose bits
BUDGET = "W6A6"


def main() -> None:
    """Measure float, two uniform policies and a searched one: Keras model and file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--heads", type=Path, required=True)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--voc", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(0)
    model = keras.saving.load_model(args.model, compile=False)
    model.compile(loss="mse")  # says that its outputs are numbers
    heads, size = json.loads(args.heads.read_text()), model.input_shape[1:3]
    labelled = list(photographs(args.voc, size))
    names = {name for name, _, _ in labelled}
    images = calibration(args.calibration, size, names)
    measured = Measured(labelled, heads, class_names(args.voc))
    summary = args.output / "summary.json"
    rows = json.loads(summary.read_text())["rows"] if summary.exists() else {}
    for name in ("float", "W8A8", "W6A6", "loss_delta"):
        if name not in rows:
            rows[name] = row(args, name, model, images, measured)
            write(summary, rows)
    print(json.dumps(rows, indent=2))


def photographs(data_dir: Path, size: tuple) -> Iterator[tuple[str, np.ndarray, dict]]:
    """(file name, image in 0 to 1, labels) of VOC 2012, stretched to a size."""
    import tensorflow_datasets as tfds

    data = tfds.load("voc/2012", split="train+validation", data_dir=data_dir)
    for example in data.as_numpy_iterator():
        objects = example["objects"]
        labels = {
            "boxes": objects["bbox"][None],
            "classes": objects["label"].astype("int32")[None],
            "difficult": objects["is_difficult"][None],
        }
        image = tf.image.resize(example["image"], size).numpy() / 255
        yield example["image/filename"].decode(), image, labels


def class_names(data_dir: Path) -> list[str]:
    """The classes in the order of VOC's label numbers."""
    import tensorflow_datasets as tfds

    info = tfds.builder("voc/2012", data_dir=data_dir).info
    return info.features["labels"].names


def calibration(folder: Path, size: tuple, known: set[str]) -> np.ndarray:
    """Training images of a VOC folder that are not among those that measure."""
    names = (folder / "ImageSets/Main/train.txt").read_text().split()
    kept = [name for name in names if f"{name}.jpg" not in known]
    chosen = np.random.default_rng(0).permutation(kept)[:CALIBRATION]
    files = [folder / "JPEGImages" / f"{name}.jpg" for name in chosen]
    decoded = [tf.io.decode_jpeg(file.read_bytes(), channels=3) for file in files]
    return np.stack([tf.image.resize(each, size).numpy() / 255 for each in decoded])


def decode(maps: list[np.ndarray], heads: list[dict], size: tuple) -> Detections:
    """Objects that a YOLO head describes (Redmon and Farhadi, arXiv:1804.02767).

    With s `scale_x_y`: `centre = (cell + s sigmoid(t) - (s - 1) / 2) / cells`,
    `side = anchor exp(t) / image`, `score = sigmoid(objectness) sigmoid(class)`.

    Args:
        maps: [B, rows, columns, anchors (5 + classes)] of each head: of each anchor
            tx, ty, tw, th, objectness, classes.
        heads: "anchors" (width, height in pixels) and "scale_x_y" of each.
        size: height and width of the image.
    """
    boxes, scores = [], []
    for raw, head in zip(maps, heads, strict=True):
        rows, columns = raw.shape[1:3]
        anchors = np.array(head["anchors"], "float32")
        t = np.reshape(raw, (len(raw), rows, columns, len(anchors), -1))
        scale = head["scale_x_y"]
        shift = scale * sigmoid(t[..., :2]) - (scale - 1) / 2
        x = (shift[..., 0] + np.arange(columns)[None, None, :, None]) / columns
        y = (shift[..., 1] + np.arange(rows)[None, :, None, None]) / rows
        width = np.exp(t[..., 2]) * anchors[:, 0] / size[1] / 2
        height = np.exp(t[..., 3]) * anchors[:, 1] / size[0] / 2
        corners = np.stack([y - height, x - width, y + height, x + width], -1)
        boxes.append(corners.reshape(len(raw), -1, 4))
        score = sigmoid(t[..., 4:5]) * sigmoid(t[..., 5:])
        scores.append(score.reshape(len(raw), -1, score.shape[-1]))
    return suppress(np.concatenate(boxes, 1), np.concatenate(scores, 1))


def sigmoid(x: np.ndarray) -> np.ndarray:
    """Of logits."""
    return np.asarray(tf.sigmoid(x))


class Measured:
    """Mean average precision of whatever computes the raw maps.

    Args:
        labelled: (name, image, labels) of each photograph.
        heads: of the detector.
        names: of the classes.
    """

    def __init__(self, labelled: list, heads: list[dict], names: list[str]) -> None:
        self.labels = [labels for _, _, labels in labelled]
        self.images = np.stack([image for _, image, _ in labelled])
        self.heads, self.names = heads, names

    def of(self, predict: Any) -> dict[str, float]:
        """`map_07` and `map_area` of images -> raw maps."""
        meter, size = MeanAP(self.names), self.images.shape[1:3]
        for start in range(0, len(self.images), BATCH):
            maps = [np.asarray(m) for m in predict(self.images[start : start + BATCH])]
            found = decode(maps, self.heads, size)
            for index, labels in enumerate(self.labels[start : start + BATCH]):
                one = (found.boxes, found.classes, found.scores, found.counts)
                each = Detections(*(part[index : index + 1] for part in one))
                meter.add_batch(labels, each)
        report = meter.report()
        return {"map_07": report.map_07, "map_area": report.map_area}


def row(
    args: argparse.Namespace,
    name: str,
    model: keras.Model,
    images: np.ndarray,
    measured: Measured,
) -> dict[str, Any]:
    """Costs and mean average precision of one policy."""
    start = time.process_time()
    if name == "float":
        cost = gmpq.count_cost(model)
        return {"bit_ops": cost.bit_ops, "keras": measured.of(model.predict_on_batch)}
    bits = 8 if name == "W8A8" else 6
    policy, search = gmpq.BitwidthPolicy.uniform(model, bits, bits), None
    if name == "loss_delta":
        result = gmpq.search_policy(
            model,
            batches(images),
            strategy="loss_delta",
            images=VALUED,
            budget=BUDGET,
            space=gmpq.SearchSpace((4, 6, 8), (4, 6, 8)),
            journal=args.output / "journal.jsonl",
            calibration_images=VALUED,  # in one batch
        )
        policy, search = result.policy, str(result.cost)
        policy.save(args.output / "policy.json")
    student = gmpq.quantize_model(model, policy)
    gmpq.calibrate(student, batches(images))
    gmpq.snap_biases(student)
    path = args.output / f"{name}.tflite"
    report = export_tflite(
        student,
        path,
        verify_data=images[:VERIFIED],
        output_kinds="numbers",
        latency_runs=0,
    )
    cost = gmpq.count_cost(model, policy)
    found = {
        "bit_ops": cost.bit_ops,
        "weight_bytes": cost.weight_bytes,
        "keras": measured.of(student.predict_on_batch),
        "file": measured.of(TFLiteModel(path).predict),
        "file_bytes": path.stat().st_size,
        "integers compared": report.twin.codes if report.twin else None,
        "integers off": report.twin.off if report.twin else None,
        "layers in float": len(report.float_parts),
        "search": search,
        "seconds": round(time.process_time() - start, 1),
    }
    return found


def batches(images: np.ndarray) -> list[np.ndarray]:
    """As many images at a time as memory holds."""
    return [images[i : i + BATCH] for i in range(0, len(images), BATCH)]


def write(path: Path, rows: dict) -> None:
    """Write what has been measured so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    versions = {
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
    }
    content = {"rows": rows, "peak_gigabytes": round(peak, 2), "versions": versions}
    path.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
