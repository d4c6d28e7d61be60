"""From the student of the last epoch to the one that is saved, with rounded biases."""

from __future__ import annotations

import math
from typing import Any

import keras

from gmpq_tf.data import Dataset
from gmpq_tf.files import read_jsonl
from gmpq_tf.report.layout import METRICS
from gmpq_tf.run.devices import is_chief
from gmpq_tf.run.errors import StageError
from gmpq_tf.run.stage import Stage
from gmpq_tf.train.finetune_config import FinetuneConfig
from gmpq_tf.train.inputs import as_labelled, task_for
from gmpq_tf.transform import snap_biases

VERIFIED_BATCHES = 16  # batches of training images, where no images are held out


def statistics_batches(config: FinetuneConfig, dataset: Dataset) -> Any:
    """Returns augmented training batches to measure statistics on, or None.

    Without augmentation the statistics of BatchNormalization differ from those that the
    weights were trained with; on CIFAR-10 that cost 1.4 points of accuracy.
    """
    if not config.epochs or not config.statistics_images:
        return None
    batches = math.ceil(config.statistics_images / dataset.config.batch_size)
    return dataset.train(config.epochs).take(batches)


def snap_student(
    student: keras.Model,
    trainee: keras.Model,
    dataset: Dataset,
    stage: Stage,
    config: FinetuneConfig,
) -> float | None:
    """Measures statistics, rounds biases, and compares the student with the last epoch.

    Args:
        student: trained; changed in place.
        trainee: what `train_student` returned.
        dataset: the images. Without a validation split the comparison is on training
            images.
        stage: its metrics.jsonl may have the accuracy of the last epoch.
        config: the number of images to measure on, and the tolerance.

    Returns:
        Accuracy of the student that is saved, 0 to 1, or the headline metric of its
        task; None where it is undefined (a detector's, on images without objects).

    Raises:
        StageError: it lies more than the tolerance below that of the last epoch.
    """
    batches = statistics_batches(config, dataset)
    task, labelled = task_for(student, dataset), as_labelled(dataset)
    if dataset.sizes["validation"]:
        images, key = labelled.validation(), f"val_{task.headline}"
    else:
        images = labelled.train(config.epochs).take(VERIFIED_BATCHES)
        key = task.headline

    def measured() -> float | None:
        return task.measure(trainee, images, dataset.class_names).get(task.headline)

    if config.precision != "float32":
        # `fit` has cached a test function that computes in the training precision.
        trainee.make_test_function(force=True)
    epochs = read_jsonl(stage.folder / METRICS)
    before = epochs[-1].get(f"val_{task.headline}") if epochs else None
    if before is None:
        before = measured()
    snap_biases(student, batches)
    after = measured()
    if before is None or after is None:
        return None
    if is_chief():
        print(
            f"{key} {before:.4f} after the last epoch, {after:.4f} with biases rounded."
        )
    if _cost(before, after, task.share) > config.snap_tolerance:
        raise StageError(_dropped(before, after, key, stage, config))
    return after


def _cost(before: float, after: float, share: bool) -> float:
    """What was lost: the decrease of a share, or the relative growth of a loss."""
    if share:
        return before - after
    return (after - before) / abs(before) if before else math.inf * (after > before)


def _dropped(
    before: float, after: float, key: str, stage: Stage, config: FinetuneConfig
) -> str:
    cause = "rounding biases cost that much: give layers more bits"
    if config.statistics_images and config.epochs:
        cause = (
            "the images that statistics were measured on are too few or not like those "
            "of training: use --statistics_images=0, which keeps the statistics of "
            "training, or more images"
        )
    return (
        "Rounding biases must leave a student as good as the last epoch. "
        f"Received: {key}={before:.4f} before and {after:.4f} after, with "
        f"snap_tolerance={config.snap_tolerance:g}. Most likely {cause}; or raise "
        f"--snap_tolerance. {stage.folder} keeps its epochs: the same command with "
        "these flags goes on from there."
    )
