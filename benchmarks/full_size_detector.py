"""A detector of the paper at full size: built, quantized, trained one step, exported.

    python benchmarks/full_size_detector.py --model=ssd300_vgg16 --size=300 \
        --voc=TFDS_FOLDER --output=results/detection/ssd300_vgg16.json
    python benchmarks/full_size_detector.py --model=faster_rcnn_resnet18 \
        --size=600x1000 --voc=TFDS_FOLDER --output=results/faster_rcnn/full_size.json

No accuracy is claimed: the weights are new. What is recorded is that every stage works
on VOC 2012's photographs, how long each takes on one thread, and the most memory the
process has had after it. The file is compared with the Keras model, and every integer
of it with exact arithmetic, on `--verified` photographs.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import gmpq_tf as gmpq
from gmpq_tf.export.tflite import export_tflite
from gmpq_tf.models import build_model
from gmpq_tf.task.tasks import task_of

MOST_OBJECTS = 40  # of an image


def main() -> None:
    """Go through the stages once; write what each took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="ssd300_vgg16")
    parser.add_argument("--size", default="300", help="side, or HEIGHTxWIDTH")
    parser.add_argument("--voc", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--verified", type=int, default=1)
    args = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    keras.utils.set_random_seed(0)
    record = Record(args)
    sides = [int(side) for side in args.size.split("x")]
    size = sides[0], sides[-1]
    images, labels = photographs(args.voc, size, max(args.batch_size, 2))
    model = record.stage("build", lambda: build_model(args.model, (*size, 3), 20))
    policy = gmpq.BitwidthPolicy.uniform(model, args.bits, args.bits)
    cost = gmpq.count_cost(model, policy)
    record.note(macs=cost.macs, bit_ops=cost.bit_ops, weight_bytes=cost.weight_bytes)
    record.note(parameters=model.count_params())
    student = record.stage("quantize", lambda: gmpq.quantize_model(model, policy))
    record.stage("calibrate", lambda: gmpq.calibrate(student, images))
    task = task_of(student)
    student.compile(keras.optimizers.SGD(1e-4), loss=task.loss())
    own = {key: value[: args.batch_size] for key, value in labels.items()}
    targets = task.encode(own) if task.encode else own
    batch = images[: args.batch_size]
    for name in ("first step, with tracing", "second step"):
        loss = record.stage(name, lambda: student.train_on_batch(batch, targets))
        record.note(loss=[*record.content.get("loss", []), float(np.ravel(loss)[0])])
    record.stage("round biases", lambda: gmpq.snap_biases(student))
    with tempfile.TemporaryDirectory() as folder:
        report = record.stage(
            "export and verify",
            lambda: export_tflite(
                student,
                Path(folder) / "model.tflite",
                verify_data=images[: args.verified],
                latency_runs=0,
            ),
        )
    twin = report.twin
    record.note(
        file_bytes=report.file_bytes,
        verified_images=args.verified,
        agreement={each.name: each.agreement for each in report.outputs},
        integers_compared=twin.codes if twin else None,
        integers_off=twin.off if twin else None,
    )
    print(json.dumps(record.content, indent=2))


def photographs(
    data_dir: Path, size: tuple[int, int], count: int
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The first photographs in 0 to 1, stretched, and their padded objects."""
    import tensorflow_datasets as tfds

    images, boxes, classes = [], [], []
    data = tfds.load("voc/2012", split=f"train[:{count}]", data_dir=data_dir)
    for example in data.as_numpy_iterator():
        images.append(tf.image.resize(example["image"], size).numpy() / 255)
        objects = example["objects"]
        room = MOST_OBJECTS - len(objects["label"])
        boxes.append(np.pad(objects["bbox"], [(0, room), (0, 0)]))
        named = objects["label"].astype("int32")
        classes.append(np.pad(named, (0, room), constant_values=-1))
    labels = {"boxes": np.stack(boxes), "classes": np.stack(classes)}
    return np.stack(images), labels


class Record:
    """What each stage took, written after each.

    Args:
        args: of the command line.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.path = args.output
        versions = {
            "python": platform.python_version(),
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
        }
        self.content: dict[str, Any] = {
            "model": args.model,
            "size": args.size,
            "bits": args.bits,
            "batch_size": args.batch_size,
            "stages": {},
            "versions": versions,
        }

    def stage(self, name: str, run: Callable[[], Any]) -> Any:
        """Run one, and note its seconds and the peak so far."""
        start, busy = time.perf_counter(), time.process_time()
        found = run()
        self.content["stages"][name] = {
            "seconds": round(time.perf_counter() - start, 1),
            "processor_seconds": round(time.process_time() - busy, 1),
            "peak_gigabytes": round(
                resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2
            ),
        }
        self.note()
        print(name, self.content["stages"][name], flush=True)
        return found

    def note(self, **values: Any) -> None:
        """Add what is known, and write it."""
        self.content |= values
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.content, indent=2) + "\n")


if __name__ == "__main__":
    main()
