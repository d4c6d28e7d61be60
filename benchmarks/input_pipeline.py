"""Images a second of the input pipeline over those of a float training step.

    python benchmarks/input_pipeline.py [--steps=3] [--output=results/.../summary.json]
    python benchmarks/input_pipeline.py --dataset=cifar10 --model=resnet8 --size=32

Without `--dataset`, 500 x 375 JPEG photographs of noise are written as TFRecords of
TFDS to a temporary folder. The pipeline is timed alone, once for each augmentation; the
step with a batch that is in memory, then fed by the pipeline of the last augmentation:
what it waits for its input then is what the pipeline costs. Above 1 the ratio says that
the step, not the input, is the bottleneck; only ratios mean anything elsewhere.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import tensorflow as tf
import tensorflow_datasets as tfds

from gmpq_tf.data import DataConfig, Dataset, load_dataset
from gmpq_tf.models import build_model

SYNTHETIC = "synthetic_photographs"
IMAGES, HEIGHT, WIDTH = 640, 375, 500
AUGMENTATIONS = ("none", "flip_crop", "random_crop", "random_resized_crop")
WARM_UP = 2


def write_photographs(data_dir: str) -> None:
    """Write JPEG photographs of noise, coarse and fine, of ImageNet's usual size.

    Args:
        data_dir: where TFDS will find them.
    """

    def example(index: tf.Tensor) -> dict[str, tf.Tensor]:
        seed = tf.stack([index, 0])
        coarse = tf.random.stateless_uniform([12, 16, 3], seed, 0.0, 255.0)
        fine = tf.random.stateless_normal([HEIGHT, WIDTH, 3], seed, stddev=8.0)
        pixels = tf.image.resize(coarse, [HEIGHT, WIDTH], "bicubic") + fine
        image = tf.cast(tf.clip_by_value(pixels, 0, 255), tf.uint8)
        return {"image": image, "label": index % 1000}

    image = tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg")
    label = tfds.features.ClassLabel(num_classes=1000)
    tfds.dataset_builders.AdhocBuilder(
        name=SYNTHETIC,
        version="1.0.0",
        features=tfds.features.FeaturesDict({"image": image, "label": label}),
        split_datasets={"train": tf.data.Dataset.range(IMAGES).map(example)},
        data_dir=data_dir,
    ).download_and_prepare()


def pipeline_rate(dataset: Dataset, seconds: float) -> tuple[float, float]:
    """Read training batches and do nothing with them.

    Args:
        dataset: what is read.
        seconds: how long to measure, at the least.

    Returns:
        Images a second, and seconds of processor time an image, which other work on
        the machine changes less.
    """
    batches = iter(dataset.train())
    for _ in range(WARM_UP):
        next(batches)
    start, processor, count = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - start < seconds:
        next(batches)
        count += dataset.config.batch_size
    used = time.process_time() - processor
    return count / (time.perf_counter() - start), used / count


def step_times(
    model: keras.Model, batches: Iterator, steps: int
) -> tuple[list[float], list[float]]:
    """Train some steps after one that compiles.

    Args:
        model: compiled.
        batches: images and labels, without end.
        steps: how many are timed.

    Returns:
        Seconds of each step, and the seconds of it that passed before its batch came.
    """
    whole, waited = [], []
    for _ in range(1 + steps):
        start = time.perf_counter()
        images, labels = next(batches)
        waited.append(time.perf_counter() - start)
        model.train_on_batch(images, labels)
        whole.append(time.perf_counter() - start)
    return whole[1:], waited[1:]


def measure(config: DataConfig, model_name: str, steps: int, seconds: float) -> dict:
    """Time the pipeline, the step, and the step fed by the pipeline.

    Args:
        config: the data set; its augmentation is varied.
        model_name: a name in MODELS.
        steps: training steps timed with either input.
        seconds: how long to read with each augmentation.

    Returns:
        The figures, by name; rates in images a second.
    """
    rates, processor = {}, {}
    for augment in AUGMENTATIONS:
        dataset = load_dataset(dataclasses.replace(config, augment=augment))
        rates[augment], processor[augment] = pipeline_rate(dataset, seconds)
    model = build_model(model_name, dataset.input_shape, dataset.num_classes)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), loss)
    batch = next(iter(dataset.train()))
    in_memory, _ = step_times(model, iter(lambda: batch, None), steps)
    fed, waited = step_times(model, iter(dataset.train()), steps)
    step = statistics.median(in_memory)
    step_rate = config.batch_size / step
    return {
        "pipeline_images_per_second": rates,
        "pipeline_processor_seconds_per_image": processor,
        "step_seconds": step,
        "step_images_per_second": step_rate,
        "ratio": {augment: rate / step_rate for augment, rate in rates.items()},
        "fed_step_seconds": statistics.median(fed),
        "waited_share": sum(waited) / sum(fed),
    }


def print_figures(figures: dict) -> None:
    """Print what `measure` returned."""
    for augment, rate in figures["pipeline_images_per_second"].items():
        ratio = figures["ratio"][augment]
        used = 1e3 * figures["pipeline_processor_seconds_per_image"][augment]
        print(
            f"pipeline, {augment:20s} {rate:9.1f} images/s  x{ratio:.1f} of the step  "
            f"{used:.3f} ms of a core an image"
        )
    print(
        f"step from memory               {figures['step_images_per_second']:9.1f} "
        f"images/s  {figures['step_seconds']:.2f} s\n"
        f"step fed by the pipeline       {figures['fed_step_seconds']:.2f} s, "
        f"{figures['waited_share']:.2%} of it waiting for input"
    )


def main() -> None:
    """Measure, print the ratios, and write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", help="a data set on disk; synthetic if not given")
    parser.add_argument("--data_dir", help="where TFDS keeps it")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--size", type=int, default=224, help="side of the images")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=3, help="steps timed a case")
    parser.add_argument("--seconds", type=float, default=10.0, help="reading a case")
    parser.add_argument("--output", help="JSON file to write")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        data_dir = args.data_dir
        if not args.dataset:
            data_dir = temporary
            write_photographs(temporary)
        config = DataConfig(
            args.dataset or SYNTHETIC,
            data_dir,
            image_size=args.size,
            batch_size=args.batch_size,
            # So few photographs would fit in memory; those they stand for do not.
            cache=bool(args.dataset),
        )
        figures = measure(config, args.model, args.steps, args.seconds)
    print_figures(figures)
    if args.output:
        record = {"command": " ".join(["python", *sys.argv]), **figures}
        record["cores"] = os.cpu_count()
        record["versions"] = {
            "python": platform.python_version(),
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
            "tensorflow-datasets": tfds.__version__,
        }
        Path(args.output).write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
