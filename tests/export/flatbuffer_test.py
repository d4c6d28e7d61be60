import numpy as np
import pytest

from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.tflite.flatbuffer import (
    FileBuilder,
    Quantization,
    pack_int2,
    pack_int4,
    read_metadata,
    read_model,
    stored_codes,
    tensor_type,
    unpack_int2,
    unpack_int4,
    with_outputs,
)
from gmpq_tf.export.tflite.runtime import TFLiteModel


def quantize_file(metadata=None):
    file = FileBuilder()
    x = file.tensor("x", (None, 4), "FLOAT32")
    y = file.tensor("y", (None, 4), "INT8", Quantization((0.5,), 3))
    z = file.tensor("z", (None, 4), "FLOAT32")
    file.operator("QUANTIZE", [x], [y])
    file.operator("DEQUANTIZE", [y], [z])
    return file.finish({"x": x}, {"z": z}, metadata or {})


@pytest.mark.parametrize("count", [1, 2, 7, 30])
def test_int4_round_trip(count):
    codes = np.random.default_rng(0).integers(-8, 8, count).astype("int8")
    packed = pack_int4(codes)
    assert len(packed) == (count + 1) // 2
    np.testing.assert_array_equal(
        unpack_int4(np.frombuffer(packed, "uint8"), count), codes
    )


def test_int4_puts_the_first_code_in_the_low_nibble():
    assert pack_int4(np.array([1, -2], "int8")) == bytes([0xE1])


def test_file_runs_and_its_batch_can_be_resized():
    x = np.random.default_rng(0).uniform(-4, 4, (5, 4)).astype("float32")
    model = TFLiteModel(quantize_file())
    np.testing.assert_allclose(model.predict(x), np.floor(x / 0.5 + 0.5) * 0.5)
    assert model.interpreter.get_signature_list()["serving_default"] == {
        "inputs": ["x"],
        "outputs": ["z"],
    }


def test_with_outputs_exposes_a_tensor_inside():
    model = TFLiteModel(with_outputs(quantize_file(), [1]))
    x = np.array([[0.0, 0.5, 1.0, -1.0]], "float32")
    np.testing.assert_array_equal(model.predict(x), x)
    assert model.outputs[0]["name"] == "y"


def test_constants_are_aligned_and_shared():
    file = FileBuilder()
    ones = np.ones(5, "int8")
    file.constant("a", ones)
    b = file.constant("a", ones)
    content = file.finish({}, {}, {})
    model = read_model(content)
    names = [t.name.decode() for t in model.subgraphs[0].tensors]
    assert names == ["a", "a_1"]
    assert len({t.buffer for t in model.subgraphs[0].tensors}) == 1
    np.testing.assert_array_equal(stored_codes(model, b), ones)
    assert tensor_type(model, b) == "INT8"
    assert content.index(ones.tobytes()) % 16 == 0


def test_metadata_round_trip(tmp_path):
    path = tmp_path / "m.tflite"
    metadata = {"input_scaling": {"kind": "0..255"}, "classes": ["cat", "Käse"]}
    path.write_bytes(quantize_file(metadata))
    assert read_metadata(path) == metadata


def test_metadata_of_something_else_is_refused(tmp_path):
    path = tmp_path / "m.tflite"
    path.write_bytes(b"not a model at all")
    with pytest.raises(ExportError, match="must be a TFLite model"):
        read_metadata(path)
    with pytest.raises(ExportError, match="must be readable"):
        read_metadata(tmp_path / "missing.tflite")


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 16])
def test_int2_codes_are_stored_four_a_byte(count):
    codes = np.random.default_rng(count).integers(-2, 2, count).astype("int8")
    data = pack_int2(codes)
    assert len(data) == -(-count // 4)
    by_hand = sum((int(c) & 3) << (2 * i) for i, c in enumerate(codes[:4]))
    assert data[0] == by_hand
    stored = np.frombuffer(data, np.uint8)
    np.testing.assert_array_equal(unpack_int2(stored, count), codes)
