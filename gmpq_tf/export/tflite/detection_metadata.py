"""Standard metadata of detectors, in the two kinds that MediaPipe reads.

One kind is for files that return detections, the other for files that return raw boxes
and scores. Field numbers are those of metadata_schema.fbs, and for raw outputs of
MediaPipe's object_detector_metadata_schema.fbs.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable

import numpy as np

from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.tflite.metadata import (
    DETECTOR_PARSER_VERSION,
    LABELS_FILE,
    Facts,
    Writer,
)
from gmpq_tf.export.tflite.postprocess import OUTPUTS, DetectorHead

FEATURES, BOUNDING_BOX = 1, 3
BOUNDARIES = 1
AXIS_LABELS, VALUE_LABELS = 2, 3
CUSTOM_NAME, CUSTOM_IDENTIFIER = "DETECTOR_METADATA", b"V001"
# Positions of left, top, right and bottom among the operator's four numbers.
CORNER_ORDER = (1, 0, 3, 2)


@dataclasses.dataclass(frozen=True)
class FoundObjects:
    """The four outputs of a file that returns detections.

    Args:
        classes: number of classes.
    """

    classes: int

    def outputs(self, writer: Writer, known: Facts) -> list[int]:
        """A table for each output."""
        feature = writer.union(FEATURES, writer.table({}))
        contents = [_box(writer), feature, feature, feature]
        tables = []
        for name, content in zip(OUTPUTS, contents, strict=True):
            if name != OUTPUTS[3]:
                content = {**content, 2: writer.reference(_range(writer, 2))}
            fields = {
                0: writer.text(name),
                3: writer.reference(writer.table(content)),
            }
            if name == OUTPUTS[1] and known.class_names:
                fields[6] = _labels(writer, VALUE_LABELS)
            tables.append(writer.table(fields))
        return tables

    def fields(self, writer: Writer) -> dict[int, Callable[[int], None]]:
        """More fields of the subgraph's table: which outputs belong together."""
        names = writer.texts(OUTPUTS[:3])
        group = {0: writer.text("detection_result"), 1: names}
        return {8: writer.vector([writer.table(group)])}


@dataclasses.dataclass(frozen=True, eq=False)
class RawDetector:
    """The two outputs of a file that returns offsets and scores of each box.

    Args:
        head: what they mean; it has no background class, which this kind cannot
            express.
    """

    head: DetectorHead

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.head.classes

    def outputs(self, writer: Writer, known: Facts) -> list[int]:
        """A table for each output."""
        box = {0: writer.text(OUTPUTS[0])}
        box[3] = writer.reference(writer.table(_box(writer)))
        scores = {0: writer.text(OUTPUTS[2])}
        feature = writer.union(FEATURES, writer.table({}))
        scores[3] = writer.reference(writer.table(feature))
        if known.class_names:
            scores[6] = _labels(writer, AXIS_LABELS)
        tables = writer.table(box), writer.table(scores)
        return [tables[self.head.places.index(place)] for place in (0, 1)]

    def fields(self, writer: Writer) -> dict[int, Callable[[int], None]]:
        """More fields of the subgraph's table: how the boxes are decoded."""
        data = writer.bytes(raw_options(self.head))
        custom = writer.table({0: writer.text(CUSTOM_NAME), 1: data})
        return {9: writer.vector([custom])}


def detecting_outputs(
    head: DetectorHead | None, found: bool, output_type: str, known: Facts
) -> FoundObjects | RawDetector | None:
    """The metadata of a detector's outputs; None: there are none to write.

    Raw scores with a background get no metadata: MediaPipe would take the background
    for a class.

    Args:
        head: what the outputs mean; None: the model is not a detector.
        found: whether the file returns detections.
        output_type: type of the file's outputs.
        known: class names.

    Raises:
        ExportError: the number of names is not that of classes.
    """
    if head is None:
        return None
    count = len(known.class_names)
    if count not in (0, head.classes):
        raise ExportError(
            f"A detector of {head.classes} classes needs as many names, without "
            f"background. Received: {count} class_names. Pass those of its data set."
        )
    if found:
        return FoundObjects(head.classes)
    if head.curve == "sigmoid" and output_type == "float32":
        return RawDetector(head)
    return None


def warn_unread(head: DetectorHead, output_type: str) -> None:
    """Warns before work is done that MediaPipe will refuse a file of raw outputs.

    Args:
        head: the meaning of the raw outputs that the file returns.
        output_type: type of the file's outputs.
    """
    if head.curve == "softmax":
        why = "scores with a background, which it would take for a class"
    elif output_type != "float32":
        why = f"output_type={output_type!r}, and it reads float32"
    else:
        return
    warnings.warn(
        "MediaPipe reads raw outputs of a detector where each class has a sigmoid of "
        f"its own. Received: {why}. It will refuse this file: for MediaPipe (and ML "
        "Kit) export with postprocess (--postprocess); for a program of your own that "
        "decodes boxes it is right as it is.",
        stacklevel=3,
    )


def raw_options(head: DetectorHead) -> bytes:
    """MediaPipe's options for decoding offsets and scores, as a flatbuffer."""
    writer = Writer()
    anchors = [
        writer.table(
            {0: writer.real(x), 1: writer.real(y), 2: writer.real(w), 3: writer.real(h)}
        )
        for y, x, h, w in np.asarray(head.centers, np.float64)
    ]
    schema = writer.table({0: writer.vector(anchors)})
    y_scale, x_scale, h_scale, w_scale = head.scales
    decoding = {
        0: writer.whole(head.classes),
        1: writer.whole(len(head.centers)),
        2: writer.whole(4),
        3: writer.whole(4),
        4: writer.whole(0),
        5: writer.whole(2),
        6: writer.real(x_scale),
        7: writer.real(y_scale),
        8: writer.real(w_scale),
        9: writer.real(h_scale),
        10: writer.truth(True),
        11: writer.truth(not head.ends),
    }
    options = {
        0: writer.text(DETECTOR_PARSER_VERSION),
        1: writer.reference(writer.table({0: writer.reference(schema)})),
        2: writer.reference(writer.table(decoding)),
    }
    writer.builder.Finish(writer.table(options), file_identifier=CUSTOM_IDENTIFIER)
    return bytes(writer.builder.Output())


def _box(writer: Writer) -> dict[int, Callable[[int], None]]:
    """The content of boxes: corners as fractions of the image (coordinate type 0)."""
    order = writer.numbers(np.array(CORNER_ORDER, np.uint32))
    return writer.union(
        BOUNDING_BOX, writer.table({0: order, 1: writer.byte(BOUNDARIES)})
    )


def _range(writer: Writer, axis: int) -> int:
    return writer.table({0: writer.whole(axis), 1: writer.whole(axis)})


def _labels(writer: Writer, kind: int) -> Callable[[int], None]:
    file = {0: writer.text(LABELS_FILE), 2: writer.byte(kind)}
    return writer.vector([writer.table(file)])
