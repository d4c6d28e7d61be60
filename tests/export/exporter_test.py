import json
from dataclasses import replace

import keras
import numpy as np
import pytest
from ai_edge_litert.schema_py_generated import BuiltinOperator, Conv2DOptionsT

from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.tflite import exporter
from gmpq_tf.export.tflite.exporter import export_tflite
from gmpq_tf.export.tflite.flatbuffer import (
    FileBuilder,
    Quantization,
    pack_int2,
    read_metadata,
    read_model,
    tensor_type,
)
from gmpq_tf.export.tflite.lowering import lower
from gmpq_tf.export.tflite.runtime import TFLiteModel
from gmpq_tf.transform import snap_biases
from tests.export.nets import NETS, conv_bn, images, randomize, student_of

L = keras.layers


def outputs_of(student, model, x):
    arrays = x if isinstance(x, list) else [x]
    wanted = keras.tree.flatten(student(x, training=False))
    received = model.predict(arrays)
    return [np.asarray(w) for w in wanted], received if len(wanted) > 1 else [received]


@pytest.mark.quick_rows(3)
@pytest.mark.parametrize("bits", [(8, 8), (3, 4)])
@pytest.mark.parametrize("net", NETS)
def test_file_computes_the_student(tmp_path, net, bits):
    model = randomize(NETS[net](), 0)
    student = student_of(model, *bits)
    x = images(model, seed=2)
    report = export_tflite(student, tmp_path / "m.tflite")
    assert all(layer.codes_equal for layer in report.layers)
    assert report.data == "random"
    for xnnpack in (True, False):
        file = TFLiteModel(tmp_path / "m.tflite", use_xnnpack=xnnpack)
        for want, have in zip(*outputs_of(student, file, x), strict=True):
            spread = float(want.max() - want.min())
            assert np.abs(want - have).mean() < 0.03 * spread


@pytest.mark.parametrize("net", ["residual", "inverted"])
def test_at_8_bits_outputs_are_within_a_step(tmp_path, net):
    model = randomize(NETS[net](), 1)
    student = student_of(model, 8, 8)
    x = images(model, seed=2)
    export_tflite(student, tmp_path / "m.tflite", verify_data=x)
    (want,), (have,) = outputs_of(student, TFLiteModel(tmp_path / "m.tflite"), x)
    step = next(
        layer.step()
        for layer in reversed(student.layers)
        if type(layer).__name__ == "InputQuantizer"
    )
    assert np.mean(np.abs(want - have) <= 1.01 * step) >= 0.99


@pytest.mark.parametrize("bits", [(2, 2), (3, 3)])
def test_after_snapping_the_biases_every_decision_is_that_of_keras(tmp_path, bits):
    model = randomize(NETS["residual"](), 2)
    student = student_of(model, *bits)
    snap_biases(student)
    x = images(model, 64, seed=2)
    report = export_tflite(student, tmp_path / "m.tflite", verify_data=x)
    assert report.agreement == 1.0
    assert report.max_steps <= 1
    (want,), (have,) = outputs_of(student, TFLiteModel(tmp_path / "m.tflite"), x)
    np.testing.assert_array_equal(want.argmax(-1), have.argmax(-1))


@pytest.mark.quick_rows(6)
@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("signed", [False, True])
def test_first_convolution_is_exact_for_every_width(tmp_path, bits, signed):
    inputs = keras.Input((8, 8, 3), name="image")
    x = L.Conv2D(8, 3, padding="same", name="a", activation=None if signed else "relu")(
        inputs
    )
    model = keras.Model(inputs, L.Conv2D(4, 1, name="b")(x))
    student = student_of(model, bits, bits, pinned={})
    report = export_tflite(student, tmp_path / "m.tflite", verify_data=images(model))
    for layer in report.layers:
        assert layer.codes_equal
        assert layer.output_agreement > 0.97
    assert report.agreement > 0.98


def wide(kernel_bits=4, **options):
    """Convolutions large enough to gain from packing, with every kind of window."""
    x = inputs = keras.Input((9, 8, 3), name="image")
    x = conv_bn(x, 24, "first", padding="same")
    x = conv_bn(x, 32, "strided", padding="same", strides=2)
    x = conv_bn(x, 32, "dilated", padding="same", dilation_rate=2)
    x = conv_bn(x, 40, "tall", size=(3, 1))
    x = conv_bn(x, 48, "pointwise", size=1)
    x = conv_bn(x, 80, "sampled", size=1, strides=2)
    model = randomize(keras.Model(inputs, L.Dense(5, name="scores")(L.Flatten()(x))), 0)
    student = student_of(model, kernel_bits, 4, pinned={}, **options)
    snap_biases(student)
    return model, student


def stored_types(report):
    return {layer.name: layer.stored_type for layer in report.layers}


@pytest.mark.parametrize("kernel_quantizer", ["lsq", "max_abs"])
def test_packed_halves_the_kernels(tmp_path, kernel_quantizer):
    _, student = wide(4, kernel_quantizer=kernel_quantizer)
    fast = export_tflite(student, tmp_path / "f.tflite")
    packed = export_tflite(student, tmp_path / "p.tflite", storage="packed")
    small = {n for n, t in stored_types(packed).items() if t == "INT4"}
    assert small == {"strided", "dilated", "tall", "pointwise", "sampled", "scores"}
    for a, b in zip(fast.layers, packed.layers, strict=True):
        assert a.stored_type == "INT8"
        if b.name in small:
            assert b.stored_bytes == (a.stored_bytes + 1) // 2
        assert a.codes_equal and b.codes_equal
        assert a.code_factor == b.code_factor == 1
    assert packed.file_bytes < fast.file_bytes
    assert packed.storage_bytes["fast"] == fast.file_bytes
    assert packed.storage_bytes["packed"] == (tmp_path / "p.tflite").stat().st_size


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_every_storage_computes_the_same(tmp_path, bits):
    model, student = wide(bits)
    x, outputs = images(model, 32, seed=5), {}
    for storage in ("fast", "packed", "smallest"):
        path = tmp_path / f"{storage}.tflite"
        export_tflite(student, path, storage=storage, verify_data=x)
        outputs[storage] = TFLiteModel(path).predict(x)
    np.testing.assert_array_equal(outputs["packed"], outputs["fast"])
    np.testing.assert_array_equal(outputs["smallest"], outputs["fast"])


def test_smallest_stores_two_bits_in_int2(tmp_path):
    _, student = wide(2)
    packed = export_tflite(student, tmp_path / "p.tflite", storage="packed")
    report = export_tflite(student, tmp_path / "s.tflite", storage="smallest")
    assert set(stored_types(report).values()) == {"INT8", "INT2"}
    assert report.file_bytes < packed.file_bytes


@pytest.mark.quick_rows(6)
@pytest.mark.parametrize("storage", ["packed", "smallest"])
@pytest.mark.parametrize("net", [*NETS, "wide"])
def test_int4_and_int2_are_only_given_to_dense_layers(tmp_path, net, storage):
    """The runtime rounds INT4 convolutions twice, and does not load INT2 ones."""
    student = wide(2)[1] if net == "wide" else student_of(NETS[net](), 2, 4)
    content = lower(student, storage).content
    model = read_model(content)
    graph, names = model.subgraphs[0], {v: k for k, v in vars(BuiltinOperator).items()}
    for operator in graph.operators:
        code = names[model.operatorCodes[operator.opcodeIndex].builtinCode]
        kinds = {tensor_type(model, i) for i in operator.inputs}
        assert code == "FULLY_CONNECTED" or not kinds & {"INT4", "INT2"}


def test_the_runtime_refuses_an_int2_convolution():
    """Why INT2 convolutions are never written."""
    file = FileBuilder()
    x = file.tensor("x", [None, 4, 4, 8], "INT8", Quantization((0.1,)))
    kernel = file.tensor(
        "w",
        (8, 3, 3, 8),
        "INT2",
        Quantization((0.1,) * 8),
        pack_int2(np.ones((8, 3, 3, 8), "int8")),
    )
    bias = file.constant("b", np.zeros(8, "int32"), Quantization((0.01,) * 8))
    y = file.tensor("y", [None, 4, 4, 8], "INT8", Quantization((1.0,)))
    options = Conv2DOptionsT()
    options.strideH = options.strideW = 1
    options.dilationHFactor = options.dilationWFactor = 1
    file.operator("CONV_2D", [x, kernel, bias], [y], options, version=8)
    with pytest.raises(ExportError, match="that the runtime knows"):
        TFLiteModel(file.finish({"x": x}, {"y": y}, {}))


def test_scaled_codes_are_the_same_weights(tmp_path):
    model, student = wide(2)
    x = images(model, 32, seed=5)
    export_tflite(student, tmp_path / "a.tflite", verify_data=x)
    report = export_tflite(
        student, tmp_path / "b.tflite", verify_data=x, scale_codes=True
    )
    assert {layer.code_factor for layer in report.layers} == {64}
    assert all(layer.codes_equal for layer in report.layers)
    a, b = (TFLiteModel(tmp_path / f"{n}.tflite").predict(x) for n in "ab")
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_latency_of_every_storage_and_of_the_float_model(tmp_path, measures_latency):
    student = student_of(NETS["plain"](), 4, 4)
    report = export_tflite(student, tmp_path / "m.tflite", latency_runs=3)
    assert set(report.latency_ms) == {"fast", "packed", "smallest", "float"}
    assert all(0 < value < 1000 for value in report.latency_ms.values())
    assert not export_tflite(student, tmp_path / "m.tflite", latency_runs=0).latency_ms


def test_a_storage_that_the_runtime_lacks_does_not_stop_another(measures_latency):
    from gmpq_tf.export.tflite.exporter import measure_latency

    student = student_of(NETS["plain"](), 4, 4)
    contents = {"fast": lower(student).content, "smallest": b"of a newer runtime"}
    assert set(measure_latency(student, contents, 1)) == {"fast", "float"}


@pytest.mark.parametrize(
    ("runtime", "storage", "wanted"),
    [
        ("litert", "fast", ["fast", "packed", "smallest"]),
        ("litert", "smallest", ["smallest", "fast", "packed"]),
        ("micro", "fast", ["fast"]),
    ],
)
def test_the_student_is_lowered_once_a_storage(
    tmp_path, monkeypatch, runtime, storage, wanted
):
    lowered = []

    def counting(student, storage, *choices):
        lowered.append(storage)
        return lower(student, storage, *choices)

    monkeypatch.setattr(exporter, "lower", counting)
    student = student_of(NETS["plain"](), 4, 4)
    path = tmp_path / "m.tflite"
    report = export_tflite(student, path, storage, runtime=runtime)
    assert lowered == wanted
    assert report.storage_bytes[storage] == report.file_bytes == path.stat().st_size


def test_packed_keeps_wider_kernels_in_int8(tmp_path):
    student = student_of(NETS["plain"](), 5, 4, pinned={})
    report = export_tflite(student, tmp_path / "m.tflite", storage="packed")
    assert {layer.stored_type for layer in report.layers} == {"INT8"}


def test_activation_tensors_have_the_trained_steps(tmp_path):
    model = randomize(NETS["plain"](), 0)
    student = student_of(model, 3, 3)
    export_tflite(student, tmp_path / "m.tflite")
    details = TFLiteModel(tmp_path / "m.tflite").interpreter.get_tensor_details()
    found = {d["name"]: d["quantization"] for d in details}
    quantizer = student.get_layer("b").input_quantizer
    scale, zero_point = found["a"]
    assert scale == pytest.approx(quantizer.step(), rel=1e-6)
    assert zero_point == 127 - 7


@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_integer_inputs_and_outputs(tmp_path, kind):
    model = randomize(NETS["plain"](), 0)
    student = student_of(model, 8, 8)
    x = images(model, seed=3)
    export_tflite(student, tmp_path / "f.tflite")
    export_tflite(student, tmp_path / "i.tflite", input_type=kind, output_type=kind)
    float_file, file = (
        TFLiteModel(tmp_path / "f.tflite"),
        TFLiteModel(tmp_path / "i.tflite"),
    )
    assert file.inputs[0]["dtype"] == file.outputs[0]["dtype"] == np.dtype(kind)
    want, have = float_file.predict(x), file.predict(x)
    assert np.abs(want - have).max() <= 1.5 / 256
    scale, zero_point = file.inputs[0]["quantization"]
    codes = np.clip(np.floor(x / scale + 0.5) + zero_point, *limits(kind)).astype(kind)
    np.testing.assert_array_equal(file.predict(codes), have)


def limits(kind):
    return np.iinfo(kind).min, np.iinfo(kind).max


def test_pixels_are_the_codes_of_a_uint8_input(tmp_path):
    model = NETS["plain"]()
    x = np.random.default_rng(0).integers(0, 256, (16, 12, 12, 3)).astype("uint8")
    x[0, 0, 0] = (0, 255, 0)
    student = student_of(model, 4, 4, x=x.astype("float32"))
    export_tflite(student, tmp_path / "m.tflite", input_type="uint8")
    file = TFLiteModel(tmp_path / "m.tflite")
    assert file.inputs[0]["quantization"] == (pytest.approx(1.0), 0)
    np.testing.assert_array_equal(file.predict(x), file.predict(x.astype("float32")))


def test_no_float_operator_in_the_middle(tmp_path):
    student = student_of(randomize(NETS["branches"](), 0), 4, 4)
    export_tflite(student, tmp_path / "m.tflite", input_type="int8", output_type="int8")
    details = TFLiteModel(tmp_path / "m.tflite").interpreter.get_tensor_details()
    assert "f" not in {np.dtype(d["dtype"]).kind for d in details}


def test_report_and_metadata_lie_beside_the_file(tmp_path):
    model = randomize(NETS["plain"](), 0)
    student = student_of(model, 4, 4)
    x = images(model, seed=2)
    labels = np.asarray(student(x)).argmax(-1)
    metadata = {"input_scaling": {"kind": "-1..1"}, "classes": list("abcde")}
    report = export_tflite(
        student, tmp_path / "m.tflite", verify_data=x, labels=labels, metadata=metadata
    )
    written = json.loads((tmp_path / "export_report.json").read_text())
    assert written == json.loads(json.dumps(report.to_json()))
    assert written["keras_accuracy"] == 1.0
    assert written["tflite_accuracy"] == report.agreement
    assert written["file_bytes"] == (tmp_path / "m.tflite").stat().st_size
    assert [row["name"] for row in written["layers"]] == ["a", "b", "c", "scores"]
    assert read_metadata(tmp_path / "m.tflite") == metadata


def test_verify_data_may_be_read_only_once(tmp_path):
    model = NETS["plain"]()
    student = student_of(model, 8, 8)
    x = images(model)
    batches = ((x[i : i + 8], np.zeros(8, int)) for i in range(0, 16, 8))
    report = export_tflite(student, tmp_path / "m.tflite", verify_data=batches)
    assert report.images == 16
    assert report.keras_accuracy is not None


def test_saved_student_exports_the_same_file(tmp_path):
    model = randomize(NETS["plain"](), 0)
    student = student_of(model, 4, 6)
    student.save(tmp_path / "student.keras")
    loaded = keras.models.load_model(tmp_path / "student.keras")
    export_tflite(student, tmp_path / "a.tflite")
    export_tflite(loaded, tmp_path / "b.tflite")
    assert (tmp_path / "a.tflite").read_bytes() == (tmp_path / "b.tflite").read_bytes()


def test_a_wrong_layer_is_named_and_the_old_file_stays(tmp_path, monkeypatch):
    import gmpq_tf.export.tflite.convolutions as convolutions

    path = tmp_path / "m.tflite"
    path.write_bytes(b"a good file")
    fold = convolutions.fold_layer

    def wrong(layer, *args):
        folded = fold(layer, *args)
        if layer.name == "b":
            folded.bias[:] += 10_000_000
        return folded

    monkeypatch.setattr(convolutions, "fold_layer", wrong)
    student = student_of(randomize(NETS["plain"](), 0), 8, 8)
    with pytest.raises(ExportError, match="layer='b'"):
        export_tflite(student, path)
    assert path.read_bytes() == b"a good file"
    assert [p.name for p in tmp_path.iterdir()] == ["m.tflite"]


def test_wrong_codes_are_found(tmp_path, monkeypatch):
    import gmpq_tf.export.tflite.convolutions as convolutions

    add = convolutions.add_kernel

    def wrong(file, name, codes, meaning, kind):
        codes = codes.copy()
        codes.flat[0] = -codes.flat[0] + 1
        return add(file, name, codes, meaning, kind)

    monkeypatch.setattr(convolutions, "add_kernel", wrong)
    student = student_of(NETS["plain"](), 8, 8)
    with pytest.raises(ExportError, match=r"must be the trained ones.*'a'"):
        export_tflite(student, tmp_path / "m.tflite")
    assert not list(tmp_path.iterdir())


def test_bad_input_is_explained(tmp_path):
    model = NETS["plain"]()
    student = student_of(model, 8, 8)
    path = tmp_path / "m.tflite"
    with pytest.raises(ExportError, match=r"storage='fats'.*Did you mean 'fast'"):
        export_tflite(student, path, storage="fats")
    with pytest.raises(ExportError, match="input_type"):
        export_tflite(student, path, input_type="int16")
    with pytest.raises(ExportError, match="must be quantized"):
        export_tflite(model, path)
    with pytest.raises(ExportError, match="must be a Keras model"):
        export_tflite("student.keras", path)
    with pytest.raises(ExportError, match="plain JSON"):
        export_tflite(student, path, metadata={"mean": np.zeros(3)})
    with pytest.raises(ExportError, match=r"\(2, 8, 8, 3\)"):
        export_tflite(student, path, verify_data=np.zeros((2, 8, 8, 3), "float32"))
    with pytest.raises(ExportError, match="at least one input"):
        export_tflite(student, path, verify_data=[])
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="must be writable"):
        export_tflite(student, tmp_path / "file" / "m.tflite")
    assert not path.exists()


def test_uncalibrated_student_is_refused(tmp_path):
    from gmpq_tf.policy import BitwidthPolicy
    from gmpq_tf.transform import quantize_model

    model = NETS["plain"]()
    student = quantize_model(model, BitwidthPolicy.uniform(model, 4, 4))
    with pytest.raises(ExportError, match=r"gmpq_tf.calibrate\(student, dataset\)"):
        export_tflite(student, tmp_path / "m.tflite")


def test_three_operands_are_refused(tmp_path):
    inputs = keras.Input((8, 8, 3))
    parts = [L.Conv2D(4, 1, name=name)(inputs) for name in "abc"]
    model = keras.Model(inputs, L.Flatten()(L.Add(name="sum")(parts)))
    with pytest.raises(ExportError, match=r"'sum' of 3 tensors"):
        export_tflite(student_of(model, 8, 8), tmp_path / "m.tflite")


def test_shipped_resnet8_exports(tmp_path, shared_dir):
    weights = shared_dir / "weights" / "mlperf_tiny_resnet8_cifar10.h5"
    if not weights.exists():
        pytest.skip("the weights of MLPerf Tiny's ResNet-8 are not here")
    model = keras.models.load_model(weights, compile=False)
    x = np.random.default_rng(0).uniform(0, 255, (32, 32, 32, 3)).astype("float32")
    student = student_of(model, 8, 8, x=x)
    report = export_tflite(student, tmp_path / "m.tflite")
    assert all(layer.codes_equal for layer in report.layers)
    assert report.mean_steps < 3
    assert report.file_bytes < 98_496  # MLPerf's own int8 file


def test_pixels_scaled_to_halves_of_the_grid_export(tmp_path):
    model = NETS["plain"]()
    pixels = np.random.default_rng(0).integers(0, 256, (16, 12, 12, 3))
    pixels[0, 0, 0] = (0, 255, 0)
    x = (pixels / 127.5 - 1).astype("float32")
    student = student_of(model, 8, 8, x=x)
    report = export_tflite(student, tmp_path / "m.tflite", verify_data=x)
    assert report.images == 16


def test_the_agreement_asked_for_is_the_callers(tmp_path, monkeypatch):
    from gmpq_tf.export.tflite import exporter

    compare = exporter.compare_outputs
    monkeypatch.setattr(
        exporter,
        "compare_outputs",
        lambda *args: replace(compare(*args), agreement=0.9),
    )
    model = NETS["plain"]()
    student, x = student_of(model, 8, 8), images(model)
    with pytest.raises(ExportError, match=r"agreement=90.0%.*lower least_agreement"):
        export_tflite(student, tmp_path / "m.tflite", verify_data=x, verify="agreement")
    assert not list(tmp_path.iterdir())
    export_tflite(student, tmp_path / "m.tflite", verify_data=x, least_agreement=0.9)


@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_a_fixed_batch_is_exported_and_verified(tmp_path, kind):
    student = student_of(NETS["residual"](), 8, 8)
    x = images(student, 10)
    free, fixed = tmp_path / "free.tflite", tmp_path / "fixed.tflite"
    options = {"input_type": kind, "output_type": kind, "verify_data": x}
    export_tflite(student, free, **options)
    report = export_tflite(student, fixed, batch=4, **options)
    assert report.images == 10 and report.agreement == 1.0
    assert list(TFLiteModel(fixed).inputs[0]["shape_signature"]) == [4, 12, 12, 3]
    np.testing.assert_allclose(
        TFLiteModel(fixed).predict(x), TFLiteModel(free).predict(x), atol=1e-6
    )
