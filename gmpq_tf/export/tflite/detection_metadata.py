"""What the standard metadata say of a detector: both kinds that MediaPipe reads.

Field numbers are those of metadata_schema.fbs and, of the raw kind, of MediaPipe's
object_detector_metadata_schema.fbs.
"""

from __future__ import annotations

import dataclasses
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
# Left, top, right, bottom among the operator's numbers.
CORNER_ORDER = (1, 0, 3, 2)


@dataclasses.dataclass(frozen=True)
class FoundObjects:
    """The four outputs of a file that returns detections.

    Args:
        classes: how many there are.
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
        """Further fields of the subgraph: which outputs belong together."""
        names = writer.texts(OUTPUTS[:3])
        group = {0: writer.text("detection_result"), 1: names}
        return {8: writer.vector([writer.table(group)])}


@dataclasses.dataclass(frozen=True, eq=False)
class RawDetector:
    """The two outputs of a file that returns offsets and scores of each box.

    Args:
        head: what they mean; without background, of which this kind knows nothing.
    """

    head: DetectorHead

    @property
    def classes(self) -> int:
        """How many there are."""
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
        """Further fields of the subgraph: how the boxes are decoded."""
        data = writer.bytes(raw_options(self.head))
        custom = writer.table({0: writer.text(CUSTOM_NAME), 1: data})
        return {9: writer.vector([custom])}


def detecting_outputs(
    head: DetectorHead | None, found: bool, output_type: str, known: Facts
) -> FoundObjects | RawDetector | None:
    """What is said of a detector's outputs; None: nothing, or it is none.

    Of raw scores with a background nothing: MediaPipe would take that for a class.

    Args:
        head: of the detector.
        found: whether the file returns detections.
        output_type: of the file.
        known: class names.

    Raises:
        ExportError: there are not as many names as classes.
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


def raw_options(head: DetectorHead) -> bytes:
    """How MediaPipe decodes offsets and scores: a flatbuffer of its own."""
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
    """The content of corners as shares of the image (coordinate type 0)."""
    order = writer.numbers(np.array(CORNER_ORDER, np.uint32))
    return writer.union(
        BOUNDING_BOX, writer.table({0: order, 1: writer.byte(BOUNDARIES)})
    )


def _range(writer: Writer, axis: int) -> int:
    return writer.table({0: writer.whole(axis), 1: writer.whole(axis)})


def _labels(writer: Writer, kind: int) -> Callable[[int], None]:
    file = {0: writer.text(LABELS_FILE), 2: writer.byte(kind)}
    return writer.vector([writer.table(file)])
