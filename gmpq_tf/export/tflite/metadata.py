"""Standard metadata of TFLite files, which MediaPipe and ML Kit read.

They are a flatbuffer (identifier M001) in the model's metadata entry TFLITE_METADATA,
and a zip archive with the label file, appended to the model's bytes. Field numbers are
those of metadata_schema.fbs in https://github.com/tensorflow/tflite-support.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import flatbuffers
import numpy as np

from gmpq_tf.data import InputScaling, pixel_affine
from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.integers.grids import Grid

ENTRY_NAME = "TFLITE_METADATA"
LABELS_FILE = "labels.txt"
FILE_IDENTIFIER = b"M001"
MIN_PARSER_VERSION, DETECTOR_PARSER_VERSION = "1.0.0", "1.5.0"
COLOR_SPACES = {1: 2, 3: 1}  # channels -> GRAYSCALE, RGB
NORMALIZATION, FEATURES, IMAGE, AXIS_LABELS = 1, 1, 2, 2
# The oldest date that a zip archive can hold; a fixed date makes files reproducible.
NO_DATE = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Described:
    """An input or output of a file.

    Args:
        name: name of the tensor.
        shape: [batch, ...]; None for an open size.
        kind: "float32", "int8" or "uint8".
        grid: grid of its values; None: probabilities in float.
    """

    name: str
    shape: tuple[int | None, ...]
    kind: str
    grid: Grid | None


@dataclass(frozen=True)
class Facts:
    """Facts about a file that its tensors do not tell.

    Args:
        class_names: names of the scores, in order; empty: not known.
        scaling: how pixels become model inputs; None: not known, or no pixels.
    """

    class_names: tuple[str, ...] = ()
    scaling: InputScaling | None = None

    def __post_init__(self) -> None:
        for name in self.class_names:
            if not isinstance(name, str) or "\n" in name or not name.strip():
                raise ExportError(
                    "A class name must be one line of text. "
                    f"Received: class_names with {name!r}. Rename that class."
                )


def facts(class_names: Any = None, scaling: Any = None) -> Facts:
    """`Facts` from the arguments of a caller.

    Args:
        class_names: texts, in the order of the scores; None: not known.
        scaling: an `InputScaling`, its configuration, or its kind, e.g. "0..1".

    Raises:
        ExportError: names are not texts.
        DataError: the scaling does not exist.
    """
    if isinstance(class_names, str):
        raise ExportError(
            "class_names must be a list of texts. "
            f"Received: class_names={class_names!r}. Write [{class_names!r}]."
        )
    if isinstance(scaling, str):
        scaling = InputScaling(scaling)
    elif isinstance(scaling, dict):
        scaling = InputScaling.from_config(scaling)
    return Facts(tuple(class_names or ()), scaling)


class Detecting(Protocol):
    """The outputs of a detector: see `detection_metadata`."""

    @property
    def classes(self) -> int:
        """Number of classes."""

    def outputs(self, writer: Writer, known: Facts) -> list[int]:
        """A table for each output."""

    def fields(self, writer: Writer) -> dict[int, Callable[[int], None]]:
        """More fields of the subgraph's table: field number -> what writes it."""


def standard_metadata(
    name: str,
    inputs: Sequence[Described],
    outputs: Sequence[Described],
    known: Facts,
    detecting: Detecting | None = None,
) -> bytes:
    """The metadata flatbuffer of a model, with the facts that are known.

    Args:
        name: name of the model.
        inputs: inputs in the order of the file.
        outputs: outputs in the order of the file.
        known: class names and scaling.
        detecting: the outputs of a detector; None: the model is not one.

    Raises:
        ExportError: no output has as many scores as there are names.
    """
    writer = Writer()
    if detecting is None:
        check_class_names([output.shape for output in outputs], known)
        version, more = MIN_PARSER_VERSION, {}
        tables = [_output(writer, o, known) for o in outputs]
    else:
        version, more = DETECTOR_PARSER_VERSION, detecting.fields(writer)
        tables = detecting.outputs(writer, known)
    subgraph = writer.table(
        {
            2: writer.vector([_input(writer, i, inputs, known) for i in inputs]),
            3: writer.vector(tables),
            **more,
        }
    )
    model = writer.table(
        {
            0: writer.text(name),
            1: writer.text("Made by gmpq_tf."),
            3: writer.vector([subgraph]),
            7: writer.text(version),
        }
    )
    writer.builder.Finish(model, file_identifier=FILE_IDENTIFIER)
    return bytes(writer.builder.Output())


def with_labels(
    content: bytes,
    outputs: Sequence[Described],
    known: Facts,
    detecting: Detecting | None = None,
) -> bytes:
    """Appends the class names to a file, as a zip archive of uncompressed entries."""
    detects = detecting is not None and bool(known.class_names)
    if not detects and not any(is_labelled(output, known) for output in outputs):
        return content
    stream = io.BytesIO(content)
    with zipfile.ZipFile(stream, "a", zipfile.ZIP_STORED) as archive:
        entry = zipfile.ZipInfo(LABELS_FILE, NO_DATE)
        archive.writestr(entry, "\n".join(known.class_names) + "\n")
    return stream.getvalue()


def is_labelled(output: Described, known: Facts) -> bool:
    """Whether an output [batch, classes] has as many scores as there are names."""
    names = known.class_names
    return bool(names) and _has_scores(output.shape, len(names))


def takes_pixels(tensor: Described, inputs: Sequence[Described], known: Facts) -> bool:
    """Whether an input is an image that a runtime can prepare from the metadata.

    Runtimes copy pixels into integer inputs unchanged, so there the codes of the grid
    must be the pixels.
    """
    image = len(tensor.shape) == 4 and tensor.shape[3] in COLOR_SPACES
    if not image or len(inputs) > 1 or known.scaling is None:
        return False
    mean, std = pixel_statistics(known.scaling)
    if len(mean) not in (1, tensor.shape[3]):
        return False
    if tensor.kind == "float32":
        return True
    assert tensor.grid is not None
    pixels: np.ndarray = np.array([[0.0], [255.0]])
    codes = (pixels - mean) / std / tensor.grid.step - tensor.grid.low
    return tensor.grid.high - tensor.grid.low == 255 and bool(
        np.all(np.abs(codes - pixels) < 0.5)
    )


def pixel_statistics(scaling: InputScaling) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation with `model_input = (pixel - mean) / std`, pixels 0..255.

    Args:
        scaling: scaling of the input.

    Returns:
        Two float64 arrays: [C], or [1] where all channels are equal.
    """
    scale, offset = (np.asarray(v, "float64") for v in pixel_affine(scaling))
    mean, std = -offset / scale, 1 / scale
    equal: bool = np.ptp(mean) == 0 and np.ptp(std) == 0
    return (mean[:1], std[:1]) if equal else (mean, std)  # MediaPipe reads only one


class Writer:
    """Writes tables of a flatbuffer by the numbers of their fields.

    A field is a function that adds it to the table being built. Flatbuffers are written
    back to front and cannot nest, so strings, vectors and tables inside a table are
    written before it, and the field only refers to them.
    """

    def __init__(self) -> None:
        self.builder = flatbuffers.Builder(1024)

    def text(self, value: str) -> Callable[[int], None]:
        """A field that holds a text."""
        return self.reference(self.builder.CreateString(value))

    def floats(self, values: Any) -> Callable[[int], None]:
        """A field that holds float32 numbers."""
        array: np.ndarray = np.asarray(values, "float32").ravel()
        return self.reference(self.builder.CreateNumpyVector(array))

    def numbers(self, values: np.ndarray) -> Callable[[int], None]:
        """A field that holds numbers of the array's own type, [n]."""
        return self.reference(self.builder.CreateNumpyVector(values))

    def bytes(self, content: bytes) -> Callable[[int], None]:
        """A field that holds a nested file, aligned to 16 bytes."""
        self.builder.StartVector(1, len(content), 16)
        self.builder.head = self.builder.head - len(content)
        place = self.builder.head
        self.builder.Bytes[place : place + len(content)] = content
        return self.reference(self.builder.EndVector())

    def texts(self, values: Sequence[str]) -> Callable[[int], None]:
        """A field that holds a list of texts."""
        return self.vector([self.builder.CreateString(value) for value in values])

    def vector(self, tables: Sequence[int]) -> Callable[[int], None]:
        """A field that holds a list of tables, given by their offsets."""
        self.builder.StartVector(4, len(tables), 4)
        for table in reversed(tables):
            self.builder.PrependUOffsetTRelative(table)
        return self.reference(self.builder.EndVector())

    def reference(self, offset: int) -> Callable[[int], None]:
        """A field that refers to a table, text or vector at an offset."""
        return lambda slot: self.builder.PrependUOffsetTRelativeSlot(slot, offset, 0)

    def byte(self, value: int) -> Callable[[int], None]:
        """A field that holds an enumeration."""
        return lambda slot: self.builder.PrependUint8Slot(slot, value, 0)

    def whole(self, value: int) -> Callable[[int], None]:
        """A field that holds an int32."""
        return lambda slot: self.builder.PrependInt32Slot(slot, value, 0)

    def real(self, value: float) -> Callable[[int], None]:
        """A field that holds a float32."""
        return lambda slot: self.builder.PrependFloat32Slot(slot, value, 0.0)

    def truth(self, value: bool) -> Callable[[int], None]:
        """A field that holds a bool."""
        return lambda slot: self.builder.PrependBoolSlot(slot, value, False)

    def table(self, fields: dict[int, Callable[[int], None]]) -> int:
        """Writes a table with fields by number; returns its offset."""
        self.builder.StartObject(max(fields) + 1 if fields else 0)
        for slot, add in sorted(fields.items()):
            add(slot)
        return self.builder.EndObject()

    def union(self, kind: int, table: int) -> dict[int, Callable[[int], None]]:
        """The first two fields of a table with a union: its type and its value."""
        return {0: self.byte(kind), 1: self.reference(table)}


def _input(
    writer: Writer, tensor: Described, inputs: Sequence[Described], known: Facts
) -> int:
    fields = {0: writer.text(tensor.name)}
    if not takes_pixels(tensor, inputs, known):
        return writer.table(fields)
    assert known.scaling is not None and tensor.shape[3] is not None
    mean, std = pixel_statistics(known.scaling)
    color = writer.table({0: writer.byte(COLOR_SPACES[tensor.shape[3]])})
    fields[3] = writer.reference(writer.table(writer.union(IMAGE, color)))
    normalization = writer.table({0: writer.floats(mean), 1: writer.floats(std)})
    unit = writer.table(writer.union(NORMALIZATION, normalization))
    fields[4] = writer.vector([unit])
    ends = _integer_ends(tensor.kind) or ((0 - mean) / std, (255 - mean) / std)
    fields[5] = _stats(writer, *ends)
    return writer.table(fields)


def _output(writer: Writer, tensor: Described, known: Facts) -> int:
    fields = {0: writer.text(tensor.name)}
    feature = writer.table({})
    fields[3] = writer.reference(writer.table(writer.union(FEATURES, feature)))
    grid = tensor.grid
    ends = (0.0, 1.0) if grid is None else (grid.low * grid.step, grid.high * grid.step)
    fields[5] = _stats(writer, *ends)
    if is_labelled(tensor, known):
        labels = {0: writer.text(LABELS_FILE), 2: writer.byte(AXIS_LABELS)}
        fields[6] = writer.vector([writer.table(labels)])
    return writer.table(fields)


def _stats(writer: Writer, low: Any, high: Any) -> Callable[[int], None]:
    fields = {0: writer.floats(high), 1: writer.floats(low)}
    return writer.reference(writer.table(fields))


def _integer_ends(kind: str) -> tuple[int, int] | None:
    if kind == "float32":
        return None
    return int(np.iinfo(kind).min), int(np.iinfo(kind).max)


def check_class_names(shapes: Sequence[tuple], known: Facts) -> None:
    """Refuses names that are not as many as the scores of any output.

    Args:
        shapes: shapes of the outputs, with the batch.
        known: what is known of the model.

    Raises:
        ExportError: no output has as many scores.
    """
    count = len(known.class_names)
    # One score may be that of the second of two classes.
    binary = count == 2 and 1 in [shape[-1] for shape in shapes]
    if count and not binary and not any(_has_scores(shape, count) for shape in shapes):
        raise ExportError(
            "class_names must be as many as an output of shape [batch, classes] has "
            f"scores. Received: {count} class_names, outputs of shapes "
            f"{list(shapes)}. Pass the names of the classes in the order of the scores."
        )


def _has_scores(shape: tuple, count: int) -> bool:
    return len(shape) == 2 and shape[1] == count
