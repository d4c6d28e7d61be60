"""Attribution maps of the float model and of quantized models, for the report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import keras
import numpy as np

from gmpq_tf.attribution import grad_cam, rank_distance, resize_maps, split_head
from gmpq_tf.data import Dataset, pixel_affine
from gmpq_tf.files import replace_file

# Share of pixels that are compared. The paper takes a fixed count, which small images
# may not have.
TOP_SHARE = 0.25


def write_attribution(
    path: Path,
    teacher: keras.Model,
    students: Mapping[str, keras.Model],
    dataset: Dataset,
    count: int,
) -> None:
    """Writes attribution maps of the labelled class for the first test images.

    Args:
        path: the .npz file, as `gmpq_tf.report` reads it.
        teacher: the float model.
        students: name -> quantized model.
        dataset: labelled images.
        count: number of images.
    """
    with dataset.naming_damaged_images():
        images, labels = next(iter(dataset.test().unbatch().batch(count)))
    maps = {"teacher": attribution_maps(teacher, images, labels)}
    for name, student in students.items():
        maps[f"student_{name}"] = attribution_maps(student, images, labels)
    top_k = max(1, round(TOP_SHARE * maps["teacher"][0].size))
    distances = {
        f"rank_distance_{name}": rank_distance(
            maps[f"student_{name}"], maps["teacher"], top_k
        )
        for name in students
    }
    arrays = {"images": to_pixels(images, dataset), "labels": labels, **distances}
    with replace_file(path) as temporary:
        plain = {key: np.asarray(value) for key, value in (arrays | maps).items()}
        np.savez_compressed(temporary, **plain)


def attribution_maps(
    model: keras.Model, images: np.ndarray, labels: np.ndarray
) -> np.ndarray:
    """Returns Grad-CAM maps at the size of the images (eq. 3 and 4).

    Args:
        model: a functional classifier.
        images: [N, H, W, C], scaled.
        labels: [N], the class each map is for.

    Returns:
        [N, H, W], values of 0 or more, not normalized.
    """
    backbone, head = split_head(model)
    maps, _ = grad_cam(head, backbone(images, training=False), labels, training=False)
    return resize_maps(maps, images.shape[1], images.shape[2]).numpy()


def to_pixels(images: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Undoes the input scaling of images.

    Args:
        images: [N, H, W, C], scaled as the model reads them.
        dataset: the data set whose scaling was applied.

    Returns:
        uint8 [N, H, W, C], 0 to 255.
    """
    scale, offset = pixel_affine(dataset.config.input_scaling())
    pixels = (np.asarray(images) - offset) / scale
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
