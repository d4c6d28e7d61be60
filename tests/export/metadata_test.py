"""Standard metadata, read back by a reader of flatbuffers that knows no schema."""

import io
import zipfile

import flatbuffers.table
import keras
import numpy as np
import pytest

from gmpq_tf.data import InputScaling
from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.tflite.exporter import export_tflite
from gmpq_tf.export.tflite.flatbuffer import read_metadata, read_model
from gmpq_tf.export.tflite.lowering import lower
from gmpq_tf.export.tflite.metadata import facts
from gmpq_tf.export.tflite.runtime import TFLiteModel
from tests.export.nets import L, student_of

NAMES = ["cat", "dög", "big bird", "x"]
F32 = flatbuffers.number_types.Float32Flags
U8 = flatbuffers.number_types.Uint8Flags


class Table:
    """A table of a flatbuffer, by the numbers of its fields."""

    def __init__(self, data, position):
        self.table = flatbuffers.table.Table(data, position)

    def at(self, slot):
        offset = self.table.Offset(4 + 2 * slot)
        return offset and self.table.Pos + offset

    def sub(self, slot):
        return Table(self.table.Bytes, self.table.Indirect(self.at(slot)))

    def text(self, slot):
        return self.at(slot) and self.table.String(self.at(slot)).decode()

    def byte(self, slot):
        return self.table.Get(U8, self.at(slot)) if self.at(slot) else 0

    def items(self, slot):
        if not self.at(slot):
            return []
        field = self.at(slot) - self.table.Pos
        start = self.table.Vector(field)
        places = [start + 4 * i for i in range(self.table.VectorLen(field))]
        return [Table(self.table.Bytes, self.table.Indirect(p)) for p in places]

    def floats(self, slot):
        field = self.at(slot) - self.table.Pos
        start, count = self.table.Vector(field), self.table.VectorLen(field)
        return [self.table.Get(F32, start + 4 * i) for i in range(count)]


def standard(content):
    """(input tables, output tables) of a file."""
    model = read_model(content)
    (entry,) = [e for e in model.metadata if e.name == b"TFLITE_METADATA"]
    data = bytearray(model.buffers[entry.buffer].data)
    assert data[4:8] == b"M001"
    root = Table(data, int.from_bytes(data[:4], "little"))
    assert root.text(7) == "1.0.0"
    (subgraph,) = root.items(3)
    return subgraph.items(2), subgraph.items(3)


def classifier(channels=3, softmax=True):
    inputs = keras.Input((8, 8, channels), name="image")
    x = L.Conv2D(4, 3, activation="relu", name="a")(inputs)
    x = L.Dense(4, name="b")(L.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, L.Softmax(name="scores")(x) if softmax else x)


def quantized(model, low=0.0, high=1.0):
    random = np.random.default_rng(0)
    x = random.uniform(low, high, (8, *model.inputs[0].shape[1:])).astype("float32")
    x[0], x[1] = low, high
    return student_of(model, 8, 8, x=x)


@pytest.mark.parametrize(
    ("scaling", "mean", "std", "low", "high"),
    [
        ("0..255", 0, 1, 0, 255),
        ("0..1", 0, 255, 0, 1),
        ("-1..1", 127.5, 127.5, -1, 1),
        (
            InputScaling("mean_std", (0.5, 0.4, 0.2), (0.25, 0.5, 0.1)),
            [127.5, 102, 51],
            [63.75, 127.5, 25.5],
            [-2, -0.8, -2],
            [2, 1.2, 8],
        ),
    ],
)
def test_images_are_described_as_pixels_become_inputs(scaling, mean, std, low, high):
    known = facts(NAMES, scaling)
    content = lower(quantized(classifier()), known=known).content
    (image,), (scores,) = standard(content)
    assert image.text(0) == "image"
    assert image.sub(3).byte(0) == 2 and image.sub(3).sub(1).byte(0) == 1  # RGB
    (unit,) = image.items(4)
    assert unit.byte(0) == 1
    np.testing.assert_allclose(unit.sub(1).floats(0), np.ravel(mean), rtol=1e-5)
    np.testing.assert_allclose(unit.sub(1).floats(1), np.ravel(std), rtol=1e-5)
    stats = image.sub(5)
    np.testing.assert_allclose(stats.floats(0), np.ravel(high), rtol=1e-5)
    np.testing.assert_allclose(stats.floats(1), np.ravel(low), atol=1e-5)
    assert scores.sub(3).byte(0) == 1
    assert (scores.sub(5).floats(0), scores.sub(5).floats(1)) == ([1.0], [0.0])
    (labels,) = scores.items(6)
    assert (labels.text(0), labels.byte(2)) == ("labels.txt", 2)
    archive = zipfile.ZipFile(io.BytesIO(content))
    assert archive.read("labels.txt").decode().splitlines() == NAMES
    assert archive.getinfo("labels.txt").compress_type == zipfile.ZIP_STORED


def test_nothing_is_claimed_that_is_not_known():
    (image,), (scores,) = standard(lower(quantized(classifier())).content)
    assert not image.at(3) and not image.items(4) and not scores.items(6)
    known = facts(None, "0..255")
    for channels, color in ((1, 2), (5, None)):
        content = lower(quantized(classifier(channels)), known=known).content
        (image,), _ = standard(content)
        assert (image.at(3) and image.sub(3).sub(1).byte(0)) == (color or 0)


def test_a_vector_is_no_image_and_numbers_have_their_own_range():
    inputs = keras.Input((6,), name="sensors")
    model = keras.Model(inputs, L.Dense(2, name="values")(inputs))
    lowered = lower(quantized(model, -1, 1), known=facts(None, "-1..1"))
    (sensors,), (values,) = standard(lowered.content)
    assert not sensors.at(3) and not sensors.items(4)
    stats, step = values.sub(5), lowered.output_steps[0]
    assert stats.floats(1)[0] < 0 < stats.floats(0)[0]
    codes = stats.floats(0)[0] / step
    np.testing.assert_allclose(codes, round(codes), atol=1e-3)


@pytest.mark.parametrize("kind", ["uint8", "int8"])
def test_integer_inputs_are_images_only_where_codes_are_pixels(kind):
    known = facts(None, "0..255")
    for high, wanted in ((255.0, True), (200.0, False)):
        student = quantized(classifier(), 0.0, high)
        (image,), _ = standard(lower(student, input_type=kind, known=known).content)
        assert bool(image.at(3)) == wanted


def test_names_that_do_not_fit_are_refused():
    student = quantized(classifier())
    with pytest.raises(ExportError, match="3 class_names"):
        lower(student, known=facts(NAMES[:3]))
    with pytest.raises(ExportError, match=r"Write \['cat'\]"):
        facts("cat")
    with pytest.raises(ExportError, match="one line"):
        facts(["a\nb", "c"])


def test_files_with_labels_are_read_verified_and_the_same_each_time(tmp_path):
    student, paths = quantized(classifier()), [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        options = {"class_names": NAMES, "scaling": {"kind": "0..1"}}
        report = export_tflite(student, path, metadata={"run": 7}, **options)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert read_metadata(paths[0]) == {"run": 7}
    assert report.file_bytes == paths[0].stat().st_size
    assert TFLiteModel(paths[0]).predict(np.zeros((2, 8, 8, 3))).shape == (2, 4)
