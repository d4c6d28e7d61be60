"""Cuts a two-stage detector into the two parts that become files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras

from gmpq_tf.detection.region_layers import (
    RegionAlign,
    RegionOutputs,
    RegionProposal,
    region_search_of,
)
from gmpq_tf.export.errors import ExportError
from gmpq_tf.transform.rewrite import flattened

FEATURES, SCORES, BOXES = "features", "rpn_scores", "rpn_boxes"
OBJECTS = "objects"


@dataclass(frozen=True)
class RegionParts:
    """A two-stage detector, cut before and after the layers that compute in float.

    Args:
        first: images -> features, and offsets and scores of the anchors.
        head: features of regions -> scores and offsets of each region.
        aligned: images -> features of regions, the inputs of the head.
        proposal: the layer that chooses regions.
        align: the layer that cuts out their features.
    """

    first: keras.Model
    head: keras.Model
    aligned: keras.Model
    proposal: RegionProposal
    align: RegionAlign

    def joined(self, first: Any, head: Any, name: str) -> keras.Model:
        """The whole detector, with other models in place of its two parts.

        Args:
            first: model that replaces `self.first`, with the same inputs and outputs.
            head: model that replaces `self.head`, likewise.
            name: name of the new model.
        """
        layers = (self.proposal, self.align)
        proposal, align = (type(each).from_config(each.get_config()) for each in layers)
        shape = self.first.input_shape
        images = keras.Input(batch_shape=shape, name=self.first.inputs[0].name)
        seen = first(images)
        corners = proposal(seen[SCORES], seen[BOXES])
        said = head(align(seen[FEATURES], corners))
        objects = RegionOutputs(name=OBJECTS)(corners, said["scores"], said["boxes"])
        outputs = {SCORES: seen[SCORES], BOXES: seen[BOXES], OBJECTS: objects}
        return keras.Model(images, outputs, name=name)


def region_parts(student: keras.Model) -> RegionParts | None:
    """Cuts a two-stage detector into its two parts.

    Args:
        student: from `quantize_model`, or a float model.

    Returns:
        The parts; None if the model is not a two-stage detector.

    Raises:
        ExportError: the model has several inputs, or not exactly one of each layer
            between the parts.
    """
    if region_search_of(student) is None:
        return None
    student = flattened(student)
    found = [
        [layer for layer in student.layers if isinstance(layer, kind)]
        for kind in (RegionProposal, RegionAlign, RegionOutputs)
    ]
    if [len(each) for each in found] != [1, 1, 1] or len(student.inputs) != 1:
        raise ExportError(
            "A two-stage detector must have one input, one RegionProposal, one "
            "RegionAlign and one RegionOutputs. Received: "
            f"model={student.name!r} with {[len(each) for each in found]} of these and "
            f"{len(student.inputs)} inputs. Build it as faster_rcnn_resnet18 is."
        )
    (proposal,), (align,), (outputs,) = found
    scores, offsets = proposal.input
    features, _ = align.input
    _, roi_scores, roi_boxes = outputs.input
    inputs, name = student.inputs[0], student.name
    seen = {FEATURES: features, SCORES: scores, BOXES: offsets}
    said = {"scores": roi_scores, "boxes": roi_boxes}
    return RegionParts(
        keras.Model(inputs, seen, name=f"{name}_regions"),
        keras.Model(align.output, said, name=f"{name}_head"),
        keras.Model(inputs, align.output, name=f"{name}_aligned"),
        proposal,
        align,
    )
