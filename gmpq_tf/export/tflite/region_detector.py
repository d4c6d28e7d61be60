"""Runs the two files of a two-stage detector as one."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gmpq_tf.detection import Detections
from gmpq_tf.detection.region_arrays import align_array, propose_arrays
from gmpq_tf.detection.region_detections import found_in_regions
from gmpq_tf.detection.region_layers import RegionSearch
from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.tflite.flatbuffer import read_file, read_metadata
from gmpq_tf.export.tflite.region_files import ENTRY
from gmpq_tf.export.tflite.runtime import TFLiteModel


class RegionDetector:
    """Runs the two files that `export_tflite` wrote for a two-stage detector.

    The first file computes features, and offsets and scores of anchors, in int8. Then
    NumPy chooses regions and cuts their features out, in float. The second file rounds
    these features to the int8 grid of its input, and computes scores and offsets of
    each region.

    Args:
        path: the first file; it names the second, which lies beside it.
        num_threads: threads of each interpreter.

    Attributes:
        class_names: one name per class, without background; () if the export had none.
        search: anchors and number of regions.
        head_path: the second file.

    Raises:
        ExportError: a file is missing or damaged, or the two files were not written by
            the same export.
    """

    def __init__(self, path: str | os.PathLike[str], num_threads: int = 1) -> None:
        self.path, known = Path(path), read_metadata(Path(path))
        self.search, self.size, self.samples, head, wanted = _read(known, self.path)
        self.class_names = tuple(known.get("class_names") or ())
        self.head_path = self.path.with_name(head)
        if hashlib.sha256(read_file(self.head_path)).hexdigest() != wanted:
            raise ExportError(
                "The two files of a detector must be of one export. "
                f"Received: {str(self.head_path)!r}, which is not the one written with "
                f"{str(self.path)!r}. Copy both, or export again."
            )
        self.first = TFLiteModel(self.path, num_threads)
        self.head = TFLiteModel(self.head_path, num_threads)
        self._centers = self.search.centers()

    @property
    def file_bytes(self) -> int:
        """Size of both files."""
        return self.path.stat().st_size + self.head_path.stat().st_size

    def find(
        self,
        images: Any,
        score_threshold: float = 0.05,
        iou_threshold: float = 0.5,
        max_detections: int = 100,
    ) -> Detections:
        """Finds the objects in images.

        Args:
            images: [B, H, W, C], floats as the Keras model takes them, or integers of
                the type of the file's input.
            score_threshold: objects have a larger probability, 0 to 1.
            iou_threshold: boxes whose IoU with a better one of their class is larger
                are dropped, 0 to 1.
            max_detections: K, largest number of objects of a class, and of an image.

        Returns:
            The objects of each image, best first: boxes [B, K, 4] as (ymin, xmin, ymax,
            xmax), 0 to 1, classes [B, K] from 0, scores [B, K], 0 to 1, and their
            numbers [B].
        """
        rows = self.predict(images)[0]
        return found_in_regions(rows, score_threshold, iou_threshold, max_detections)

    def predict(self, x: Any, batch_size: int = 64) -> list[np.ndarray]:
        """The outputs of the Keras model, in its order: objects, rpn_boxes, rpn_scores.

        Args:
            x: as in `find`.
            batch_size: images per run of the first file; the second file runs once for
                each image, on all of its regions.

        Returns:
            Floats [B, R, 4 + 5 (classes + 1)], [B, N, 4] and [B, N, 1].

        Raises:
            ExportError: the images do not fit the first file.
        """
        features, offsets, scores = self.first.predict(x, batch_size)
        rows = [
            self._rows(*image) for image in zip(features, offsets, scores, strict=True)
        ]
        return [np.stack(rows), offsets, scores]

    def _rows(
        self, features: np.ndarray, offsets: np.ndarray, scores: np.ndarray
    ) -> np.ndarray:
        """Corners, scores and offsets of each region, [R, 4 + 5 (classes + 1)]."""
        own = self.search
        corners = propose_arrays(
            scores[:, 0],
            offsets,
            self._centers,
            own.before,
            own.regions,
            own.iou_threshold,
        )
        aligned = align_array(features, corners, self.size, self.samples)
        boxes, classes = self.head.predict(aligned, batch_size=own.regions)
        return np.concatenate([corners, classes, boxes], axis=-1)


def open_tflite(path: str | os.PathLike[str]) -> TFLiteModel | RegionDetector:
    """Opens a `.tflite` file; for a two-stage detector both of its files.

    Args:
        path: a file that `export_tflite` wrote, or any `.tflite` file.

    Raises:
        ExportError: as `TFLiteModel` and `RegionDetector`.
    """
    model = TFLiteModel(path)  # first, since it survives damaged files
    return RegionDetector(path) if ENTRY in read_metadata(Path(path)) else model


def _read(
    known: Mapping[str, Any], path: Path
) -> tuple[RegionSearch, int, int, str, str]:
    """Reads how the two files are joined from the metadata of the first.

    Returns:
        The search for regions, bins along a side of a region, samples along a side of a
        bin, name of the second file, and its SHA-256.
    """
    try:
        entry = known[ENTRY]
        search = RegionSearch.from_config(entry["search"])
        head, wanted = str(entry["head"]), str(entry["head_sha256"])
        size, samples = int(entry["size"]), int(entry["samples"])
    except (KeyError, TypeError, ValueError) as error:
        raise ExportError(
            "The file must be the first of the two that export_tflite writes of a "
            f"two-stage detector. Received: {str(path)!r} ({type(error).__name__}: "
            f"{error}). Open others with TFLiteModel, or export again."
        ) from error
    if Path(head).name != head or size < 1 or samples < 1:
        raise ExportError(
            "The second file of a detector must lie beside the first. "
            f"Received: {str(path)!r}, which names {head!r}. Export it again."
        )
    return search, size, samples, head, wanted
