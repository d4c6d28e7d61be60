"""Detections in a file: what `TFLite_Detection_PostProcess` makes of a detector.

The operator runs on the CPU, in float32, on one image at a time; runtimes know it by
name. Its inputs are offsets, probabilities and default boxes; its outputs boxes,
classes, scores and their number.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from flatbuffers import flexbuffers

from gmpq_tf.detection import default_boxes_of
from gmpq_tf.detection.boxes import area
from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.tflite.flatbuffer import FileBuilder, read_model, with_outputs
from gmpq_tf.export.tflite.runtime import TFLiteModel
from gmpq_tf.task import Binary, Classes, outputs_of

OPERATOR = "TFLite_Detection_PostProcess"
# Names of its outputs, in its order.
OUTPUTS = ("location", "category", "score", "number of detections")
BOXES, SCORES = "boxes", "scores"  # of the outputs of a detector
SUPPRESSIONS = ("per_class", "fast")
# What the exponentials of two programs may be apart, in shares of the image.
TOLERANCE = 1e-5


@dataclasses.dataclass(frozen=True)
class PostProcess:
    """Which of a detector's boxes its file returns.

    Args:
        max_detections: objects of an image at most; so long are the outputs.
        iou_threshold: boxes that overlap a better one by more are dropped, above 0 and
            at most 1.
        score_threshold: probability of an object at least, 0 to 1.
        suppression: "per_class": boxes are compared with those of their class; "fast":
            each box counts for its best class only, and is compared with all.

    Raises:
        ExportError: a number is out of range.
    """

    max_detections: int = 100
    iou_threshold: float = 0.45
    score_threshold: float = 0.05
    suppression: str = "per_class"

    def __post_init__(self) -> None:
        if (
            type(self.max_detections) is not int
            or not 1 <= self.max_detections <= 10**4
        ):
            raise _wrong(
                "max_detections", self.max_detections, "a number from 1, e.g. 100"
            )
        if not 0 < self.iou_threshold <= 1:
            raise _wrong("iou_threshold", self.iou_threshold, "above 0, at most 1")
        if not 0 <= self.score_threshold <= 1:
            raise _wrong("score_threshold", self.score_threshold, "0 to 1")
        if self.suppression not in SUPPRESSIONS:
            raise _wrong("suppression", self.suppression, " or ".join(SUPPRESSIONS))


@dataclasses.dataclass(frozen=True, eq=False)
class DetectorHead:
    """What the two outputs of a detector mean.

    Args:
        places: of offsets and scores among the outputs.
        centers: of the default boxes, float32 [N, 4] as (cy, cx, h, w).
        scales: by which the offsets (dy, dx, dh, dw) are divided.
        classes: without background.
        curve: "softmax": background is the first score; "sigmoid": there is none.
        ends: whether the model ends with it; else its scores are logits.
    """

    places: tuple[int, int]
    centers: np.ndarray
    scales: tuple[float, float, float, float]
    classes: int
    curve: str
    ends: bool


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


def detector_head(student: Any, class_names: Sequence[str] = ()) -> DetectorHead | None:
    """What the outputs of a detector mean; None: it carries no default boxes.

    Args:
        student: a Keras model with the outputs "boxes" and "scores".
        class_names: without background; as many as scores: there is no background.

    Raises:
        ExportError: the outputs do not fit the default boxes.
    """
    boxes = default_boxes_of(student)
    if boxes is None:
        return None
    outputs = outputs_of(student)
    names = [output.name for output in outputs]
    if not {BOXES, SCORES} <= set(names):
        raise ExportError(
            f"A detector must return a dict with {BOXES!r} and {SCORES!r}. "
            f"Received: outputs {', '.join(map(repr, names))}. Build the model with "
            f"outputs={{{BOXES!r}: ..., {SCORES!r}: ...}}."
        )
    places = names.index(BOXES), names.index(SCORES)
    scores = outputs[places[1]]
    wanted = (boxes.count, 4)
    if outputs[places[0]].shape != wanted or scores.shape[:-1] != wanted[:1]:
        raise ExportError(
            f"A detector of {boxes.count} default boxes must have as many offsets and "
            f"rows of scores. Received: {BOXES!r} of {outputs[places[0]].shape}, "
            f"{SCORES!r} of {scores.shape}. Make the boxes for the model's maps."
        )
    ends = scores.known_from == "graph" and isinstance(scores.kind, Classes | Binary)
    if ends:
        sigmoid = isinstance(scores.kind, Binary)
    else:
        sigmoid = len(class_names) == scores.shape[-1]
    y, h = (1 / float(v) for v in boxes.variances)
    return DetectorHead(
        places,
        boxes.centers(),
        (y, y, h, h),
        scores.shape[-1] - (not sigmoid),
        "sigmoid" if sigmoid else "softmax",
        ends,
    )


def check_postprocess(
    given: Any,
    head: DetectorHead | None,
    outputs: int,
    output_type: str,
    batch: int | None,
    runtime: str,
) -> PostProcess | None:
    """What the operator is asked for; None: the outputs stay as they are.

    Raises:
        ExportError: the model or the file cannot have it.
    """
    if given is None or given is False:
        return None
    options = PostProcess() if given is True else given
    if isinstance(options, Mapping):
        try:
            options = PostProcess(**options)
        except TypeError as error:
            raise _wrong(
                "postprocess", given, f"options that exist ({error})"
            ) from error
    if not isinstance(options, PostProcess):
        raise _wrong("postprocess", given, "True, or a PostProcess")
    reasons = {
        "the model carries no default boxes: end its offsets with DefaultBoxesLayer, "
        "or leave postprocess out": head is None,
        f"the model has {outputs} outputs and not just offsets and scores: leave out "
        "the others": outputs != 2,
        f"output_type={output_type!r}, and its outputs are float32: leave it "
        "out": output_type != "float32",
        f"batch={batch}, and it takes one image: leave it out": batch not in (None, 1),
        f"runtime={runtime!r}, whose operators are resolved elsewhere: leave "
        "postprocess out": runtime != "litert",
    }
    if reason := next((why for why, true in reasons.items() if true), None):
        raise ExportError(
            f"{OPERATOR} needs a detector of one image and float outputs. "
            f"Received: {reason}."
        )
    return options


def add_postprocess(
    file: FileBuilder, outputs: Sequence[int], head: DetectorHead, options: PostProcess
) -> dict[str, int]:
    """Adds the operator behind the raw outputs of a detector.

    Args:
        file: that ends with float32 offsets and scores.
        outputs: their tensors, in the order of the model's outputs.
        head: what they mean.
        options: what is asked for.

    Returns:
        Names and tensors of the new outputs.
    """
    offsets, scores = (outputs[place] for place in head.places)
    if not head.ends:
        scores = _probabilities(file, scores, head)
    anchors = file.constant("default_boxes", head.centers)
    count = options.max_detections
    shapes = ([1, count, 4], [1, count], [1, count], [1])
    results = [
        file.tensor(name, shape, "FLOAT32")
        for name, shape in zip(OUTPUTS, shapes, strict=True)
    ]
    file.custom(OPERATOR, [offsets, scores, anchors], results, packed(head, options))
    return dict(zip(OUTPUTS, results, strict=True))


def _probabilities(file: FileBuilder, logits: int, head: DetectorHead) -> int:
    shape = list(file.tensors[logits].shape)
    tensor = file.tensor("probabilities", shape, "FLOAT32")
    if head.curve == "sigmoid":
        file.operator("LOGISTIC", [logits], [tensor])
        return tensor
    softmax = schema.SoftmaxOptionsT()
    softmax.beta = 1.0
    file.operator("SOFTMAX", [logits], [tensor], softmax)
    return tensor


def packed(head: DetectorHead, options: PostProcess) -> bytes:
    """The operator's options: a flexbuffer map."""
    builder = flexbuffers.Builder()
    with builder.Map():
        builder.Int("max_detections", options.max_detections)
        builder.Int("max_classes_per_detection", 1)
        builder.Int("detections_per_class", options.max_detections)
        builder.Bool("use_regular_nms", options.suppression == "per_class")
        builder.Float("nms_score_threshold", options.score_threshold)
        builder.Float("nms_iou_threshold", options.iou_threshold)
        builder.Int("num_classes", head.classes)
        for name, scale in zip("yxhw", head.scales, strict=True):
            builder.Float(f"{name}_scale", scale)
    return bytes(builder.Finish())


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
    result = np.zeros((options.max_detections, 6), np.float32)
    for row, (index, number) in enumerate(found):
        result[row] = [*boxes[index], number, scores[index, number]]
    return result[:, :4], result[:, 4], result[:, 5], len(found)


def _decoded(offsets: np.ndarray, head: DetectorHead) -> np.ndarray:
    """Boxes of offsets: float32 [N, 4] as (ymin, xmin, ymax, xmax)."""
    scaled = offsets.astype(np.float64) / np.array(head.scales)
    centers = head.centers.astype(np.float64)
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


def _wrong(name: str, value: Any, rule: str) -> ExportError:
    return ExportError(f"{name} must be {rule}. Received: {name}={value!r}.")
