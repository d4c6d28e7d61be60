"""Lets a file return detections, by the operator `TFLite_Detection_PostProcess`.

It is a custom operator, which runtimes know by its name. It runs on the CPU, in
float32, on one image at a time. Its inputs are offsets, probabilities and default
boxes; its outputs are boxes, classes, scores and their number.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from flatbuffers import flexbuffers

from gmpq_tf.detection import default_boxes_of
from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.tflite.flatbuffer import FileBuilder
from gmpq_tf.task import outputs_of
from gmpq_tf.transform.rewrite import all_scores

OPERATOR = "TFLite_Detection_PostProcess"
# Names of the operator's outputs, in its order.
OUTPUTS = ("location", "category", "score", "number of detections")
BOXES, SCORES = "boxes", "scores"  # names of the outputs of a detector
# What lists of labels call the background.
_BACKGROUNDS = frozenset(["background", "__background__", "bg", "???"])
SUPPRESSIONS = ("per_class", "fast")


@dataclasses.dataclass(frozen=True)
class PostProcess:
    """Options for the detections that a file returns.

    Args:
        max_detections: largest number of objects in an image, the length of the
            outputs.
        iou_threshold: boxes that overlap a better one with a larger IoU are dropped,
            above 0 and at most 1.
        score_threshold: smallest probability of an object, 0 to 1.
        suppression: "per_class": boxes are compared with those of the same class;
            "fast": each box counts only for its best class, and is compared with all.

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
    """The meaning of the two outputs of a detector.

    Args:
        places: indices of offsets and scores among the outputs.
        centers: default boxes, float32 [N, 4] as (cy, cx, h, w), fractions of the
            image.
        scales: divisors of the offsets (dy, dx, dh, dw).
        classes: number of classes, without background.
        curve: "softmax": background is the first score; "sigmoid": there is none.
        ends: whether the model applies this function; else its scores are logits.
    """

    places: tuple[int, int]
    centers: np.ndarray
    scales: tuple[float, float, float, float]
    classes: int
    curve: str
    ends: bool


def detector_head(student: Any, class_names: Sequence[str] = ()) -> DetectorHead | None:
    """The meaning of a detector's outputs; None: the model has no default boxes.

    Args:
        student: a Keras model with the outputs "boxes" and "scores".
        class_names: names without background; if there are as many as scores, or there
            is one score, the model has no background.

    Raises:
        ExportError: the outputs do not fit the default boxes, or the first name is that
            of the background.
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
    last = all_scores(student)[places[1]][1]
    ends = last in ("softmax", "sigmoid")
    columns = scores.shape[-1]
    # A softmax of one score would say nothing.
    alone = columns in (len(class_names), 1)
    sigmoid = last == "sigmoid" if ends else alone
    if sigmoid and class_names and class_names[0].casefold() in _BACKGROUNDS:
        raise ExportError(
            "Names of a detector's classes must be without background; as many names "
            "as scores say that it has none, and each score a sigmoid of its own. "
            f"Received: class_names[0]={class_names[0]!r} of {columns} for {columns} "
            "scores. Leave that name out."
        )
    y, h = (1 / float(v) for v in boxes.variances)
    return DetectorHead(
        places,
        boxes.centers(),
        (y, y, h, h),
        columns - (not sigmoid),
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
    """The options of the operator; None: the file returns the model's outputs.

    Raises:
        ExportError: the model or the file cannot have the operator.
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
        file: the file, which ends with float32 offsets and scores.
        outputs: their tensors, in the order of the model's outputs.
        head: what the outputs mean.
        options: options of the operator.

    Returns:
        Name -> tensor of the new outputs.
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
    """The operator's options as a flexbuffer map, with the operator's key names."""
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


def _wrong(name: str, value: Any, rule: str) -> ExportError:
    return ExportError(f"{name} must be {rule}. Received: {name}={value!r}.")
