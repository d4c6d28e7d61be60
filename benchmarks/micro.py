"""The four networks of MLPerf Tiny in TFLite Micro: bytes, arena, what is equal.

    python benchmarks/micro.py --weights=weights --clients=.venv/clients \
        --data=data/tfds --output=results/micro/summary.json

Each is quantized without training, at W8A8 and by a mixed policy (the larger half of
the kernels 4 bits, activations 8, both ends 8), exported with `runtime="micro"` and
int8 inputs and outputs, and run in TFLite Micro, in LiteRT's reference kernels and in
XNNPACK on the same inputs. Images are those of CIFAR-10's test set (ResNet-8) and the
photographs of VOC 2012 (visual wake words: is there a person), from TFDS; the other two
networks, for whose sounds there are no data here, get random numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

import gmpq_tf as gmpq
from gmpq_tf.export.tflite import export_tflite
from gmpq_tf.export.tflite.memory_cost import peak_bytes
from gmpq_tf.export.tflite.runtime import TFLiteModel
from gmpq_tf.models import load_model

SEED = 0
RUNNER = Path(__file__).parents[1] / "tests" / "clients" / "run_micro.py"
PERSON = "person"
# Inputs: to calibrate, to compare, and labels of these or None.
Inputs = tuple[np.ndarray, np.ndarray, "np.ndarray | None"]


def cifar(data: str, count: int) -> Inputs:
    """Pixels 0..255 of the training and the test set, and classes."""
    splits = ["train[:256]", f"test[:{count}]"]
    options = {"data_dir": data, "download": False}
    kept, tested = tfds.load("cifar10", split=splits, batch_size=-1, **options)
    images = (s["image"].numpy().astype("float32") for s in (kept, tested))
    return *images, tested["label"].numpy()


def people(data: str, count: int) -> Inputs:
    """Photographs of 96 x 96 pixels, 0..1, and whether a person is in them."""
    kept, tested = (
        list(tfds.load("voc/2012", split=split, data_dir=data, download=False))
        for split in ("train", "validation")
    )
    features = tfds.builder("voc/2012", data_dir=data).info.features
    person = features["labels"].feature.str2int(PERSON)
    both = [
        np.stack([tf.image.resize(row["image"], (96, 96), antialias=True) for row in s])
        for s in (kept, tested)
    ]
    labels = [int(person in row["labels"].numpy()) for row in tested]
    return both[0] / 255, both[1][:count] / 255, np.array(labels)[:count]


def noise(shape: tuple[int, ...], mean: float, deviation: float) -> Any:
    """Random numbers of a shape, as a function of how many."""

    def inputs(data: str, count: int) -> Inputs:
        random = np.random.default_rng(SEED)
        sizes = ((128, *shape), (count, *shape))
        return *(
            random.normal(mean, deviation, s).astype("float32") for s in sizes
        ), None

    return inputs


NETWORKS = {
    "resnet8": ("mlperf_tiny_resnet8_cifar10.h5", cifar),
    "autoencoder": ("mlperf_tiny/ad01.h5", noise((640,), 0.0, 10.0)),
    "vww": ("mlperf_tiny/vww_96.h5", people),
    "wake_word": ("mlperf_tiny/str_ww.h5", noise((30, 1, 40), 0.5, 0.2)),
}


def mixed_policy(model: keras.Model) -> gmpq.BitwidthPolicy:
    """Kernels of 4 bits in the larger half of the layers, 8 in the others and ends."""
    names = [name for name, _ in gmpq.BitwidthPolicy.uniform(model, 8, 8).items()]
    inner = sorted(names[1:-1], key=lambda n: -model.get_layer(n).count_params())
    small = inner[: len(inner) // 2]
    bits = {name: (4 if name in small else 8, 8) for name in names}
    return gmpq.BitwidthPolicy(model.name, bits)


def run_micro(python: str, path: Path, codes: np.ndarray) -> np.ndarray:
    """What TFLite Micro gives for int8 inputs [N, ...], [N, ...]."""
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder, "in.npz"), Path(folder, "out.npz")
        np.savez(given, codes)
        command = [python, RUNNER, path, given, found]
        subprocess.run(command, check=True, capture_output=True)
        return next(iter(np.load(found).values()))


def rows(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row a network and policy."""
    python = str(Path(arguments.clients, "bin", "python").absolute())
    for name, (weights, inputs) in NETWORKS.items():
        model = load_model(Path(arguments.weights, weights))
        kept, x, labels = inputs(arguments.data, arguments.images)
        wanted = model.predict(x, verbose=0)
        for policy_name in ("W8A8", "mixed"):
            mixed = policy_name == "mixed"
            policy = (
                mixed_policy(model)
                if mixed
                else gmpq.BitwidthPolicy.uniform(model, 8, 8)
            )
            student = gmpq.quantize_model(model, policy)
            gmpq.calibrate(student, kept)
            gmpq.snap_biases(student, None)
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, "model.tflite")
                report = export_tflite(
                    student,
                    path,
                    runtime="micro",
                    input_type="int8",
                    output_type="int8",
                    verify_data=x[:64],
                    least_agreement=0.0,
                )
                yield {
                    "network": name,
                    "policy": policy_name,
                    **measured(report, path, python, x, wanted, labels, student),
                }


def measured(
    report: Any,
    path: Path,
    python: str,
    x: np.ndarray,
    wanted: np.ndarray,
    labels: np.ndarray | None,
    student: keras.Model,
) -> dict[str, Any]:
    """What one file needs and computes."""
    files = {k: TFLiteModel(path, kernels=k) for k in ("reference", "xnnpack")}
    scale, zero = files["xnnpack"].inputs[0]["quantization"]
    codes = np.clip(np.floor(x / np.float32(scale) + 0.5) + zero, -128, 127)
    codes = codes.astype("int8")
    (reference,), (xnnpack,) = (files[k].stored([codes]) for k in files)
    micro = run_micro(python, path, codes)
    off = np.abs(micro.astype(int) - reference)
    found = {
        "file_bytes": report.file_bytes,
        "array_bytes": path.with_suffix(".cc").stat().st_size,
        "arena_bytes": report.micro.arena.total,
        "activation_bytes": report.micro.activation_bytes,
        "alive_bytes": peak_bytes(path.read_bytes()),
        "operators": len(report.micro.operators),
        "int4_layers": sum(row.function is not None for row in report.micro.int4),
        "layers": len(report.micro.int4),
        "int4_saves": sum(row.bytes - row.packed_bytes for row in report.micro.int4),
        "inputs": len(x),
        "micro_codes": int(off.size),
        "micro_off_reference": int(np.count_nonzero(off)),
        "micro_largest_off_reference": int(off.max()),
        "micro_off_xnnpack": int(np.count_nonzero(micro != xnnpack)),
    }
    if wanted.shape[-1] > 100:  # an autoencoder: numbers, no classes
        scale, zero = files["xnnpack"].outputs[0]["quantization"]
        values = (micro.astype("float32") - zero) * scale
        error = np.abs(values - wanted).mean() / np.abs(wanted).mean()
        return {**found, "relative_error_of_float": float(error)}
    decided = micro.argmax(-1)
    outputs = student.predict(x, verbose=0).argmax(-1)
    found |= {
        "agreement_float": float(np.mean(decided == wanted.argmax(-1))),
        "agreement_keras": float(np.mean(decided == outputs)),
        "agreement_xnnpack": float(np.mean(decided == xnnpack.argmax(-1))),
    }
    if labels is not None:
        found |= {
            "accuracy_float": float(np.mean(wanted.argmax(-1) == labels)),
            "accuracy_micro": float(np.mean(decided == labels)),
        }
    return found


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--clients", default=".venv/clients")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--output", required=True)
    arguments = parser.parse_args()
    os.environ["GMPQ_CLIENTS"] = arguments.clients
    keras.utils.set_random_seed(SEED)
    warnings.simplefilter("ignore")
    versions = ("tensorflow", "keras", "ai-edge-litert")
    result: dict[str, Any] = {
        "python": sys.version.split()[0],
        **{name: version(name) for name in versions},
        "seed": SEED,
        "rows": [],
    }
    for row in rows(arguments):
        print(json.dumps(row), flush=True)
        result["rows"].append(row)
        path = Path(arguments.output)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
