"""The C source, arena and INT4 kernels that a file for TFLite Micro comes with."""

import json
import re
import shutil
import subprocess
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.tflite import export_tflite
from gmpq_tf.export.tflite.exporter import REPORT_NAME
from gmpq_tf.export.tflite.flatbuffer import VERSIONS
from gmpq_tf.export.tflite.lowering import lower
from gmpq_tf.export.tflite.memory_cost import Lifetime, peak_bytes, planned_bytes
from gmpq_tf.export.tflite.micro import arena, files
from gmpq_tf.export.tflite.micro.arena import Arena, measure_arena, parsed
from gmpq_tf.export.tflite.micro.int4 import int4_kernels
from gmpq_tf.export.tflite.micro.source import (
    RESOLVER_METHODS,
    Source,
    array,
    header,
    resolver_methods,
)
from gmpq_tf.export.tflite.runtime import TFLiteModel
from tests.export.nets import NETS, L, conv_bn, images, student_of


@pytest.fixture
def no_micro(monkeypatch):
    monkeypatch.setattr(files, "measure_arena", lambda content: None)


def groups():
    x = inputs = keras.Input((8, 8, 4), name="image")
    x = L.Conv2D(4, 1, name="first")(x)  # the ends have 8 bits
    x = L.Conv2D(8, 3, activation="relu", name="whole")(x)
    x = L.Conv2D(8, 3, groups=2, padding="same", name="grouped")(x)
    x = L.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = conv_bn(x, 4, "point", size=1)
    x = L.Conv2DTranspose(4, 2, strides=2, name="up")(x)
    x = L.GlobalAveragePooling2D()(x)
    x = L.Dense(6, activation="relu", name="dense")(x)
    return keras.Model(inputs, L.Dense(3, name="last")(x))


def test_the_array_is_the_file_and_the_header_says_what_it_needs(tmp_path, no_micro):
    student = student_of(NETS["shared"](), 4, 4)
    path = tmp_path / "net-1.tflite"
    kinds = {"input_type": "int8", "output_type": "int8"}
    report = export_tflite(student, path, runtime="micro", **kinds)
    source = (tmp_path / "net-1.cc").read_text()
    numbers = re.findall(r"0x([0-9a-f]{2})", source)
    assert bytes.fromhex("".join(numbers)) == path.read_bytes()
    assert f"g_net_1_len = {report.file_bytes};" in source
    assert "alignas(16) const unsigned char g_net_1[]" in source
    text = (tmp_path / "net-1.h").read_text()
    model = TFLiteModel(path)
    for kind, details in (("INPUT", model.inputs), ("OUTPUT", model.outputs)):
        for number, detail in enumerate(details):
            scale, zero = detail["quantization"]
            found = re.search(rf"NET_1_{kind}_{number}_SCALE (\S+)f", text)[1]
            assert np.float32(found) == np.float32(scale)
            assert f"NET_1_{kind}_{number}_ZERO_POINT ({zero})" in text
            assert f"{detail['shape'].tolist()}, value = {found}" in text
    assert "not measured" in text and "ARENA_BYTES" not in text
    for method in report.micro.operators:
        assert f"resolver.{method}();" in text
    assert f"MicroMutableOpResolver<{len(report.micro.operators)}>" in text
    stored = json.loads((tmp_path / REPORT_NAME).read_text())["micro"]
    assert stored["activation_bytes"] == planned_bytes(path.read_bytes())
    assert [row["layer"] for row in stored["int4"]] == ["trunk", "trunk"] + [
        row.layer for row in report.micro.int4[2:]
    ]
    assert "pip install tflite-micro" in str(report.micro)


def test_compilers_read_the_source(tmp_path, no_micro):
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    # Names that would end a comment, or be no identifiers.
    x = inputs = keras.Input((6,), name="a")
    student = student_of(keras.Model(inputs, L.Dense(3, name="b")(x)), 8, 8)
    path = tmp_path / "8bit.tflite"
    export_tflite(student, path, runtime="micro", input_type="int8")
    (tmp_path / "main.cc").write_text(
        '#include <cstdio>\n#include <cstdint>\n#include "8bit.h"\n'
        "int main() {\n"
        "  if (reinterpret_cast<uintptr_t>(g_model_8bit) % 16) return 2;\n"
        "  double s = MODEL_8BIT_INPUT_0_SCALE + MODEL_8BIT_INPUT_0_ZERO_POINT;\n"
        "  if (s != s || MODEL_8BIT_ACTIVATION_BYTES <= 0) return 3;\n"
        "  fwrite(g_model_8bit, 1, g_model_8bit_len, stdout);\n}\n"
    )
    command = [compiler, "-std=c++11", "-Wall", "-Werror", "main.cc", "8bit.cc"]
    subprocess.run([*command, "-o", "main"], cwd=tmp_path, check=True)
    done = subprocess.run([tmp_path / "main"], capture_output=True, check=True)
    assert done.stdout == path.read_bytes()
    (tmp_path / "c.c").write_text('#include "8bit.h"\nint main(void) { return 0; }\n')
    subprocess.run(
        [*command[:1], "-x", "c", "-Wall", "-Werror", "-c", "c.c"],
        cwd=tmp_path,
        check=True,
    )


def test_nothing_of_a_name_ends_the_comment():
    content = lower(student_of(NETS["plain"](), 4, 4), runtime="micro").content
    source = Source("a*/b.tflite", content, 1, Arena(9, 5, "1.2"), ())
    text = header(source)
    assert text.count("*/") == 1 and "A__B_ARENA_BYTES 9" in text
    assert "9 bytes, 5 of them" in text and "1.2" in text
    assert array(source).splitlines()[0].startswith("// a* /b.tflite")


@pytest.mark.parametrize("suffix", [".h", ".cc"])
def test_a_source_of_somebody_else_stays(tmp_path, suffix, no_micro):
    student, path = student_of(NETS["plain"](), 4, 4), tmp_path / "m.tflite"
    theirs = path.with_suffix(suffix)
    theirs.write_text("int mine;\n")
    with pytest.raises(ExportError, match=rf"where m\{suffix} is somebody else's"):
        export_tflite(student, path, runtime="micro")
    assert theirs.read_text() == "int mine;\n" and not path.exists()
    theirs.unlink()
    for _ in range(2):  # and ours is replaced
        export_tflite(student, path, runtime="micro")


def test_other_runtimes_write_no_source(tmp_path):
    path = tmp_path / "m.tflite"
    report = export_tflite(student_of(NETS["plain"](), 4, 4), path)
    assert report.micro is None
    assert sorted(p.name for p in tmp_path.iterdir()) == [REPORT_NAME, "m.tflite"]


def test_every_operator_that_files_hold_has_its_method():
    assert set(RESOLVER_METHODS) == set(VERSIONS)
    assert len(set(RESOLVER_METHODS.values())) == len(RESOLVER_METHODS)
    methods = resolver_methods(lower(student_of(NETS["plain"](), 4, 4)).content)
    assert {"AddConv2D", "AddFullyConnected", "AddMaxPool2D"} < set(methods)


def test_int4_of_each_layer():
    names = ("whole", "grouped", "depthwise", "point", "up", "dense")
    for bits in (8, 4):
        lowered = lower(student_of(groups(), bits, 8), runtime="micro")
        rows = {row.layer: row for row in int4_kernels(lowered)}
        assert tuple(rows) == ("first", *names, "last")
        assert rows["first"].function is rows["last"].function is None
        if bits == 8:
            assert all("codes reach 127" in row.why for row in rows.values())
            assert not any(row.function for row in rows.values())
    functions = {name: rows[name].function for name in names}
    assert functions == {
        "whole": "arm_convolve_wrapper_s4",
        "grouped": None,
        "depthwise": "arm_depthwise_conv_wrapper_s4",
        "point": "arm_convolve_wrapper_s4",
        "up": None,
        "dense": "arm_fully_connected_s4",
    }
    assert "groups" in rows["grouped"].why and "TRANSPOSE_CONV" in rows["up"].why
    assert (rows["whole"].bytes, rows["whole"].packed_bytes) == (288, 144)
    assert (rows["up"].bytes, rows["up"].packed_bytes) == (64, 64)


def test_the_plan_holds_what_meets_apart():
    lowered = lower(student_of(groups(), 4, 4), runtime="micro")
    assert planned_bytes(lowered.content) >= peak_bytes(lowered.content)
    assert Lifetime(1, 0, 2).meets(Lifetime(1, 2, 3))
    assert not Lifetime(1, 0, 1).meets(Lifetime(1, 2, 3))


def test_what_micro_prints_is_read_or_refused(monkeypatch, tmp_path):
    text = "version 0.1\n[x] Arena allocation total 96 bytes\nArena allocation head 64 "
    assert parsed(text + "bytes\n") == Arena(96, 64, "0.1")
    with pytest.raises(ExportError, match="Didn't find op for builtin opcode 'X'"):
        parsed("version 0.1\nDidn't find op for builtin opcode 'X'\n")
    with pytest.raises(ExportError, match="ended without a word"):
        parsed("")
    monkeypatch.setenv("GMPQ_CLIENTS", str(tmp_path))
    with pytest.raises(ExportError, match="holds no bin/python"):
        measure_arena(b"")
    monkeypatch.delenv("GMPQ_CLIENTS")
    monkeypatch.setattr(arena, "find_spec", lambda name: None)
    assert measure_arena(b"") is None
    # A Python without the package: not measured, as where there is none.
    monkeypatch.setattr(arena, "micro_python", lambda: "python3")
    monkeypatch.setattr(
        arena.subprocess, "run", lambda *a, **k: SimpleNamespace(returncode=3)
    )
    assert measure_arena(b"") is None


def test_students_with_float_inputs_have_no_scale(tmp_path, no_micro):
    student = student_of(NETS["plain"](), 4, 4)
    report = export_tflite(
        student, tmp_path / "m.tflite", runtime="micro", verify_data=images(student, 4)
    )
    assert report.micro.inputs[0].scale is None
    text = (tmp_path / "m.h").read_text()
    assert "SCALE" not in text and "image: float32 [1, 12, 12, 3]" in text
