"""Facts about a file that follow from the data its student was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras

from gmpq_tf.data import Dataset
from gmpq_tf.export.tflite.postprocess import detector_head
from gmpq_tf.policy import BitwidthPolicy
from gmpq_tf.report.layout import POLICY
from gmpq_tf.task import outputs_of
from gmpq_tf.task.tasks import task_of


def verification_images(
    dataset: Dataset, count: int, student: keras.Model | None = None
) -> Any:
    """Returns batches of held-out images and labels, or None for random inputs.

    Args:
        dataset: the images.
        count: number of images; 0 for none.
        student: the model whose outputs labels are compared with; None: labels are
            always kept.

    Returns:
        A `tf.data.Dataset` of (images, labels), or of images if labels cannot be
        compared; or None.
    """
    if not count:
        return None
    held_out = dataset.sizes["validation"] > 0
    batches = dataset.validation() if held_out else dataset.calibration(count)
    size = min(count, dataset.config.batch_size)
    images = batches.unbatch().take(count).batch(size)
    if not dataset.labelled or student is None:
        return images
    task = task_of(student, dataset.targets)
    encode = task.encode
    if task.placewise and encode is None:
        return images
    if task.placewise and encode is not None:
        return images.map(lambda inputs, labels: (inputs, encode(labels)))
    return images.map(lambda pixels, labels: pixels)


def output_kinds(student: keras.Model, dataset: Dataset) -> Any:
    """Returns the kinds of the outputs for a data set of tensors, from its loss.

    Args:
        student: the exported model.
        dataset: the data it was trained on.

    Returns:
        Name of an output -> its kind; None for classes and boxes, whose kinds
        `export_tflite` derives.
    """
    if dataset.targets is None:
        return None
    loss = task_of(student, dataset.targets).loss()
    found = outputs_of(student, loss=loss)
    return {output.name: output.kind for output in found}


def class_names(student: keras.Model, dataset: Dataset) -> tuple[str, ...]:
    """Returns the names of a model's scores: the class names, if there are as many."""
    names = tuple(dataset.class_names)
    head = detector_head(student, names)
    if head is not None:
        return names if head.classes == len(names) else ()
    fits = any(tuple(o.shape[1:]) == (len(names),) for o in student.outputs)
    return names if fits else ()


def metadata(folder: Path, dataset: Dataset) -> dict[str, Any]:
    """Returns the metadata stored in the file: input scaling, classes, policy.

    Args:
        folder: folder of the fine-tuned model.
        dataset: the images that it was trained on.

    Returns:
        Plain JSON values.
    """
    policy = BitwidthPolicy.load(folder / POLICY)
    bits = {name: [b.weight_bits, b.activation_bits] for name, b in policy.items()}
    return {
        "input_scaling": dataset.config.input_scaling().to_config(),
        "class_names": list(dataset.class_names),
        "policy": {"model": policy.model, "layers": bits},
    }
