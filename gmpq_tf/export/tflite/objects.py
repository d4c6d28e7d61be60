"""`TFLite_Detection_PostProcess` in NumPy, and a comparison of files with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from gmpq_tf.detection import Detections
from gmpq_tf.detection.boxes import area
from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.tflite.flatbuffer import read_model, with_outputs
from gmpq_tf.export.tflite.postprocess import (
    OPERATOR,
    OUTPUTS,
    DetectorHead,
    PostProcess,
)
from gmpq_tf.export.tflite.runtime import TFLiteModel

# Tolerance for different implementations of exp, as a fraction of the image.
TOLERANCE = 1e-5


@dataclasses.dataclass(frozen=True)
class PostReport:
    """How the detections of a file compare with those of its raw outputs.

    Args:
        options: options of the operator.
        images: number of images that were compared.
        detections: number of detections on all of them.
        max_error: largest difference of a box or score from the reference's.
    """

    options: PostProcess
    images: int
    detections: int
    max_error: float

    def __str__(self) -> str:
        return (
            f"{OPERATOR}: {self.detections} detections on {self.images} images, "
            f"{self.max_error:.2g} from those of the raw outputs"
        )


def reference(
    offsets: np.ndarray, scores: np.ndarray, head: DetectorHead, options: PostProcess
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """The detections of the operator in one image, computed by NumPy.

    Rows after the last object are zeros. (Unlike that the operator with "fast" leaves
    old values there.)

    Args:
        offsets: offsets of each box, [N, 4].
        scores: probabilities, [N, classes], or one column more for background.
        head: default boxes and scales.
        options: options of the operator.

    Returns:
        Boxes float32 [K, 4], not clipped, classes [K], scores [K], with
        K = `max_detections`, and the number of detections.
    """
    boxes = _decoded(offsets, head)
    scores = scores[:, scores.shape[1] - head.classes :]
    if options.suppression == "fast":
        best = scores.argmax(axis=1)
        rows = np.arange(len(scores))
        kept = _suppressed(boxes, scores[rows, best], options)
        found = [(index, best[index]) for index in kept]
    else:
        found = [
            (index, number)
            for number in range(head.classes)
            for index in _suppressed(boxes, scores[:, number], options)
        ]
        found.sort(key=lambda row: -scores[row])  # stable, as in the operator
        found = found[: options.max_detections]
    result: np.ndarray = np.zeros((options.max_detections, 6), np.float32)
    for row, (index, number) in enumerate(found):
        result[row] = [*boxes[index], number, scores[index, number]]
    return result[:, :4], result[:, 4], result[:, 5], len(found)


def _decoded(offsets: np.ndarray, head: DetectorHead) -> np.ndarray:
    """Decodes offsets [N, 4] to boxes float32 [N, 4], (ymin, xmin, ymax, xmax)."""
    scaled = offsets.astype(np.float64) / np.array(head.scales)
    centers: np.ndarray = head.centers.astype(np.float64)
    middle = scaled[:, :2] * centers[:, 2:] + centers[:, :2]
    half = 0.5 * np.exp(scaled[:, 2:]) * centers[:, 2:]
    return np.concatenate([middle - half, middle + half], axis=1).astype(np.float32)


def _suppressed(
    boxes: np.ndarray, scores: np.ndarray, options: PostProcess
) -> list[int]:
    """Non-maximum suppression: indices of the boxes that are kept, best first."""
    order = np.argsort(-scores, kind="stable")
    left = order[scores[order] >= np.float32(options.score_threshold)]
    kept: list[int] = []
    while len(left) and len(kept) < options.max_detections:
        kept.append(int(left[0]))
        overlap = _overlap(boxes[left[0]], boxes[left[1:]])
        left = left[1:][overlap <= np.float32(options.iou_threshold)]
    return kept


def _overlap(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """IoU of a box [4] with others [n, 4], float32 [n]; 0 where an area is 0."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    sides = np.maximum(high - low, 0)
    shared = sides[:, 0] * sides[:, 1]
    first, second = area(box), area(others)
    union = first + second - shared
    usable = (first > 0) & (second > 0)
    return np.where(usable, shared / np.where(usable, union, 1), 0)


def returns_objects(model: TFLiteModel) -> bool:
    """Whether a file returns detections, as `add_postprocess` writes them."""
    return tuple(detail["name"] for detail in model.outputs) == OUTPUTS


def found_objects(outputs: Sequence[np.ndarray]) -> Detections:
    """The detections in the outputs of `TFLiteModel.predict` for such a file.

    Args:
        outputs: boxes [B, K, 4], classes [B, K], scores [B, K] and their numbers [B].

    Returns:
        The same, with boxes clipped to the image and zeros in unused rows.
    """
    boxes, classes, scores, counts = (np.asarray(part) for part in outputs)
    counts = counts.astype(np.int32)
    real = np.arange(scores.shape[1]) < counts[:, None]
    return Detections(
        np.where(real[..., None], np.clip(boxes, 0, 1), 0).astype(np.float32),
        np.where(real, classes, 0).astype(np.int32),
        np.where(real, scores, 0).astype(np.float32),
        counts,
    )


def compare_postprocess(
    content: bytes,
    raw: bytes,
    head: DetectorHead,
    options: PostProcess,
    batches: Sequence[Sequence[np.ndarray]],
) -> PostReport:
    """Compares a file's detections with the reference applied to its raw outputs.

    Args:
        content: the file with the operator.
        raw: the file without it, which was compared with Keras.
        head: what the raw outputs mean.
        options: options of the operator.
        batches: inputs, [images, ...] each.

    Raises:
        ExportError: they differ.
    """
    model = read_model(content)
    subgraph = model.subgraphs[0]
    offsets, scores, _ = subgraph.operators[-1].inputs
    shown = TFLiteModel(with_outputs(content, [offsets, scores, *subgraph.outputs]))
    plain = TFLiteModel(raw)
    images = detections = 0
    largest = 0.0
    for arrays in batches:
        own = plain.run(arrays)
        seen_offsets, seen_scores, *found = shown.run(arrays)
        if seen_scores.min() < 0 or seen_scores.max() > 1:
            raise ExportError(
                f"{OPERATOR} needs probabilities. Received: scores from "
                f"{seen_scores.min():.3g} to {seen_scores.max():.3g}. Nothing was "
                "written; end the model's scores with a softmax or sigmoid."
            )
        wanted_scores = _curved(own[head.places[1]], head)
        largest = max(
            largest,
            float(np.abs(seen_offsets - own[head.places[0]]).max()),
            float(np.abs(seen_scores - wanted_scores).max()),
        )
        for row in range(len(seen_offsets)):
            wanted = reference(seen_offsets[row], seen_scores[row], head, options)
            count = wanted[3]
            largest = max(largest, abs(float(found[3][row]) - count))
            for have, want in zip(found[:3], wanted[:3], strict=True):
                largest = max(largest, _apart(have[row][:count], want[:count]))
            images, detections = images + 1, detections + count
    if not largest <= TOLERANCE:
        raise ExportError(
            "The detections of a file must be those of its raw outputs. "
            f"Received: {OPERATOR} that is {largest:.3g} off on {images} images. "
            "Nothing was written; export without postprocess and report this line."
        )
    return PostReport(options, images, detections, largest)


def _apart(have: np.ndarray, wanted: np.ndarray) -> float:
    """Largest difference of two arrays; relative for numbers above 1."""
    off = np.abs(have.astype(np.float64) - wanted) / np.maximum(1, np.abs(wanted))
    return float(np.max(off, initial=0.0))


def _curved(scores: np.ndarray, head: DetectorHead) -> np.ndarray:
    """Probabilities from raw scores, [B, N, columns] both."""
    if head.ends:
        return scores
    if head.curve == "sigmoid":
        return 1 / (1 + np.exp(-scores))
    shifted = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)
