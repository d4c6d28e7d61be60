"""The task of detectors: boxes, and a class for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import keras
import numpy as np

from gmpq_tf.detection import (
    BoxLoss,
    CocoAP,
    DefaultBoxes,
    Detections,
    HardNegativeCrossEntropy,
    decode_and_suppress,
    targets,
)
from gmpq_tf.detection.mean_ap import MeanAP
from gmpq_tf.task.guidance import box_gap
from gmpq_tf.task.kinds import TaskError
from gmpq_tf.task.output_names import check_finite
from gmpq_tf.task.outputs import outputs_of
from gmpq_tf.task.task import Task
from gmpq_tf.transform.rewrite import all_scores


class BoxTask(Task):
    """The task of detectors: offsets from default boxes, and class scores of each.

    Args:
        model: a functional model with outputs `{"boxes": [batch, N, 4], "scores":
            [batch, N, classes + 1]}`.
        default_boxes: the default boxes that its offsets belong to.

    Raises:
        TaskError: the model has other outputs, or scores that are sigmoids.
    """

    holds: ClassVar[str] = "boxes"
    headline: ClassVar[str] = "map_07"
    of_images: ClassVar[str] = "mean average precision (VOC 2007) on the {} images"
    # Accuracy over default boxes would be meaningless: most of them are background.
    placewise: ClassVar[bool] = False

    def __init__(self, model: keras.Model, default_boxes: DefaultBoxes) -> None:
        self.default_boxes, self.name, self.model = default_boxes, model.name, model
        self.encode = self.targets
        outputs = outputs_of(model)
        shapes, count = {o.name: o.shape for o in outputs}, default_boxes.count
        named = set(shapes) == {"boxes", "scores"}
        if not named or shapes["scores"][:-1] != (count,):
            raise TaskError(
                'A detector must have the outputs {"boxes": [batch, N, 4], "scores": '
                f"[batch, N, classes + 1]}} of its N={count} default boxes. Received: "
                f"model={model.name!r} with {shapes}. Name them in a dict: "
                "keras.Model(inputs, {'boxes': ..., 'scores': ...})."
            )
        self.deciding = [o.name for o in outputs].index("scores")
        scores = outputs[self.deciding]
        self.classes = scores.shape[-1] - 1
        ending = all_scores(model)[self.deciding][1]
        if ending == "sigmoid":
            raise TaskError(
                "The scores of a detector must be logits, or a softmax over background "
                f"and classes. Received: model={model.name!r}, whose scores end in "
                "sigmoid. Give them no activation; a detector trained elsewhere is "
                "searched, quantized and exported from Python."
            )
        self.from_logits = ending != "softmax"

    def targets(self, labels: Any) -> dict[str, Any]:
        """Returns offsets and classes to train on, for each default box.

        Args:
            labels: "boxes" [B, M, 4] and "classes" [B, M]; see `detection.targets`.
        """
        return targets(labels, self.default_boxes)

    def loss(self) -> dict[str, keras.losses.Loss]:
        """Returns the losses by output: `BoxLoss` and `HardNegativeCrossEntropy`."""
        scores = HardNegativeCrossEntropy(from_logits=self.from_logits)
        return {"boxes": BoxLoss(), "scores": scores}

    def metrics(self) -> list[Any]:
        """Returns []: average precision is computed over all images, not per batch."""
        return []

    def check(self, class_names: Sequence[str]) -> None:
        """Refuses outputs that do not have one score per class and one for background.

        Raises:
            TaskError: the number of scores differs.
        """
        if self.classes != len(class_names):
            raise TaskError(
                "A detector needs a score for each class of the data set, and one for "
                f"the background. Received: model={self.name!r} of {self.classes} "
                f"classes for {len(class_names)}. Build the model with that many "
                "classes, or choose its own data set."
            )

    def measure(
        self, model: keras.Model, batches: Any, class_names: Sequence[str]
    ) -> dict[str, float]:
        """Returns mean average precision, see `BoxMeter.report`; {} without objects."""
        meter = self.meter(class_names)
        for images, labels in batches:
            outputs = model.predict_on_batch(np.asarray(images))
            meter.add(outputs, keras.tree.map_structure(np.asarray, labels))
        found = meter.report().items()
        return {name: share for name, share in found if share is not None}

    def found(self, outputs: Mapping[str, Any]) -> Detections:
        """The objects that outputs find in the images.

        Args:
            outputs: name -> output, "boxes" [B, N, 4] and "scores" [B, N, classes + 1].
        """
        return decode_and_suppress(
            outputs["boxes"],
            outputs["scores"],
            self.default_boxes,
            from_logits=self.from_logits,
        )

    def guidance(
        self, targets: Sequence[Any], outputs: Sequence[Any], temperature: float
    ) -> Any:
        """Returns the distillation loss of a student, `box_gap`, a scalar."""
        places = 1 - self.deciding, self.deciding
        wanted, own = ([each[p] for p in places] for each in (targets, outputs))
        return box_gap(wanted, own, temperature)

    def meter(self, class_names: Sequence[str]) -> BoxMeter:
        """Returns a meter of mean average precision for these classes."""
        names = class_names or [str(number) for number in range(self.classes)]
        return BoxMeter(self.found, names)


class BoxMeter:
    """Accumulates a detector's outputs and computes mean average precision.

    Args:
        found: function: outputs by name -> the objects that they find in the images.
        class_names: one name per class.
    """

    def __init__(
        self,
        found: Callable[[Mapping[str, Any]], Detections],
        class_names: Sequence[str],
    ) -> None:
        self.found = found
        self.mean_ap, self.coco_ap = MeanAP(class_names), CocoAP(class_names)

    def add(
        self, outputs: Mapping[str, Any] | Detections, labels: Mapping[str, Any]
    ) -> None:
        """Adds a batch.

        Args:
            outputs: outputs by name, "boxes" [B, N, 4] and "scores" [B, N, classes +
                1], or the objects found.
            labels: "boxes" [B, M, 4], "classes" [B, M], maybe "difficult" [B, M].

        Raises:
            TaskError: an output is NaN or infinite; such a score would find nothing.
        """
        if isinstance(outputs, Detections):
            check_finite({"boxes": outputs.boxes, "scores": outputs.scores})
        else:
            check_finite(outputs)
            outputs = self.found(outputs)
        self.mean_ap.add_batch(labels, outputs)
        self.coco_ap.add_batch(labels, outputs)

    def report(self) -> dict[str, float | None]:
        """Returns `map_07` and `map_area` (VOC) and `map_coco`, 0 to 1 or None."""
        report, coco = self.mean_ap.report(), self.coco_ap.mean()
        return {
            "map_07": report.map_07,
            "map_area": report.map_area,
            "map_coco": coco,
        }
