"""What `TFLite_Detection_PostProcess` finds, by NumPy, and files held against it."""

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

# What the exponentials of two programs may be apart, in shares of the image.
TOLERANCE = 1e-5


@dataclasses.dataclass(frozen=True)
class PostReport:
    """How the detections of a file compare with those of its raw outputs.

    Args:
        options: what the operator was asked for.
        images: how many were compared.
        detections: of all of them.
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
    """What the operator finds in one image, by NumPy.

    Unlike the operator with "fast", which leaves what was there before in the rows
    after the last object, they are zeros.

    Args:
        offsets: [N, 4].
        scores: probabilities, [N, classes], or one more for background.
        head: default boxes and scales.
        options: what is asked for.

    Returns:
        Boxes float32 [K, 4], not clipped, classes [K], scores [K] of `max_detections`
        rows, zeros where nothing is found, and the number that is.
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
        found.sort(key=lambda row: -scores[row])  # stable, as the operator's
        found = found[: options.max_detections]
    result: np.ndarray = np.zeros((options.max_detections, 6), np.float32)
    for row, (index, number) in enumerate(found):
        result[row] = [*boxes[index], number, scores[index, number]]
    return result[:, :4], result[:, 4], result[:, 5], len(found)


def _decoded(offsets: np.ndarray, head: DetectorHead) -> np.ndarray:
    """Boxes of offsets: float32 [N, 4] as (ymin, xmin, ymax, xmax)."""
    scaled = offsets.astype(np.float64) / np.array(head.scales)
    centers: np.ndarray = head.centers.astype(np.float64)
    middle = scaled[:, :2] * centers[:, 2:] + centers[:, :2]
    half = 0.5 * np.exp(scaled[:, 2:]) * centers[:, 2:]
    return np.concatenate([middle - half, middle + half], axis=1).astype(np.float32)


def _suppressed(
    boxes: np.ndarray, scores: np.ndarray, options: PostProcess
) -> list[int]:
    """Boxes of scores [N] that no better one overlaps, best first, at most so many."""
    order = np.argsort(-scores, kind="stable")
    left = order[scores[order] >= np.float32(options.score_threshold)]
    kept: list[int] = []
    while len(left) and len(kept) < options.max_detections:
        kept.append(int(left[0]))
        overlap = _overlap(boxes[left[0]], boxes[left[1:]])
        left = left[1:][overlap <= np.float32(options.iou_threshold)]
    return kept


def _overlap(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """IoU in float32, [n]; 0 where an area is 0."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    sides = np.maximum(high - low, 0)
    shared = sides[:, 0] * sides[:, 1]
    first, second = area(box), area(others)
    union = first + second - shared
    usable = (first > 0) & (second > 0)
    return np.where(usable, shared / np.where(usable, union, 1), 0)


def returns_objects(model: TFLiteModel) -> bool:
    """Whether a file ends with the operator, as `add_postprocess` writes it."""
    return tuple(detail["name"] for detail in model.outputs) == OUTPUTS


def found_objects(outputs: Sequence[np.ndarray]) -> Detections:
    """The objects that such a file found, from what `TFLiteModel.predict` returns.

    Args:
        outputs: boxes [B, K, 4], classes [B, K], scores [B, K] and their numbers [B].

    Returns:
        The same, with boxes cut at the edges of the image and zeros where nothing is.
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
    """Holds a file's detections against those of its raw outputs.

    Args:
        content: the file with the operator.
        raw: the file without, which was compared with Keras.
        head: what its outputs mean.
        options: what is asked for.
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
    """Largest difference; of boxes far outside the image, as a share of the number."""
    off = np.abs(have.astype(np.float64) - wanted) / np.maximum(1, np.abs(wanted))
    return float(np.max(off, initial=0.0))


def _curved(scores: np.ndarray, head: DetectorHead) -> np.ndarray:
    """Probabilities of raw scores, [B, N, columns]."""
    if head.ends:
        return scores
    if head.curve == "sigmoid":
        return 1 / (1 + np.exp(-scores))
    shifted = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)
