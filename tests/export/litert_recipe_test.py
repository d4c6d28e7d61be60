import json
import os
import re

os.environ.setdefault("GMPQ_XLA_QUANTIZERS", "0")  # small tensors: compiling costs more

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.integers.layouts import keras_layout
from gmpq_tf.export.litert_recipe import (
    float_tflite,
    is_recovered,
    op_config,
    recipe,
    write_recipe,
)
from gmpq_tf.export.tflite.flatbuffer import read_model, tensor_type
from gmpq_tf.export.tflite.runtime import TFLiteModel
from gmpq_tf.graph import is_searchable, read_graph
from gmpq_tf.policy import BitwidthPolicy
from gmpq_tf.transform import calibrate, quantize_model
from tests.export.nets import NETS, images, randomize

# The tool's own calibration keeps every tensor, of which its runtime warns.
pytestmark = pytest.mark.filterwarnings("ignore:.*experimental_preserve_all_tensors")

L = keras.layers
CODES = {
    getattr(schema.BuiltinOperator, name): name
    for name in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
}


@pytest.fixture(scope="module")
def tool():
    reason = "litert-quantizer is not installed"
    return pytest.importorskip("litert_quantizer.quantizer", reason=reason)


@pytest.fixture(scope="module")
def plain_file():
    return float_tflite(make("plain", (4, 8))[0])


def make(net, bits, zero_channels=False):
    """A calibrated student, its policy and inputs; `bits`: a pair, or one a layer."""
    model = randomize(NETS[net]() if isinstance(net, str) else net, 0)
    if not zero_channels:
        for layer in model.layers:
            if isinstance(layer, L.BatchNormalization):
                layer.gamma.assign(np.where(layer.gamma == 0, -0.7, layer.gamma))
    layers = [c.name for c in read_graph(model).calls if is_searchable(c.layer)]
    pairs = bits if isinstance(bits, dict) else dict.fromkeys(layers, bits)
    policy = BitwidthPolicy(model.name, {n: pairs[n] for n in dict.fromkeys(layers)})
    student, x = quantize_model(model, policy), images(model)
    calibrate(student, [(x,)])
    return student, policy, x


def quantized(tool, content, rules, inputs):
    """What the tool makes of a float file; `inputs`: name -> array."""
    quantizer = tool.Quantizer(bytearray(content), rules)
    ranges = None
    if quantizer.need_calibration:
        ranges = quantizer.calibrate({"serving_default": [inputs]})
    result = quantizer.quantize(ranges, enable_progress_report=False)
    return bytes(result.quantized_model)


def named(student, x):
    arrays = x if isinstance(x, list) else [x]
    return {t.name: a for t, a in zip(student.inputs, arrays, strict=True)}


def predict(content, inputs):
    """Outputs in the order of the model: files list them in an order of their own."""
    interpreter = TFLiteModel(content).interpreter
    rows = []
    for row in range(len(next(iter(inputs.values())))):
        runner = interpreter.get_signature_runner()
        rows.append(runner(**{n: a[row : row + 1] for n, a in inputs.items()}))
    return [np.concatenate([r[n] for r in rows]) for n in sorted(rows[0])]


def difference(student, content, x):
    """Mean difference of the outputs, as a share of their spread."""
    wanted = [np.asarray(v) for v in keras.tree.flatten(student(x, training=False))]
    received = predict(content, named(student, x))
    pairs = zip(wanted, received, strict=True)
    return max(float(np.abs(a - b).mean() / np.ptp(a)) for a, b in pairs)


def stored_kernels(content):
    """(operator, its output, type, codes) of each operator with a quantized kernel."""
    model = read_model(content)
    graph = model.subgraphs[0]
    made_by = {index: op for op in graph.operators for index in op.outputs}
    for operator in graph.operators:
        code = CODES.get(model.operatorCodes[operator.opcodeIndex].builtinCode)
        if code is None:
            continue
        index = operator.inputs[1]
        if index in made_by:  # weights only: a DEQUANTIZE stands between
            index = made_by[index].inputs[0]
        tensor = graph.tensors[index]
        data = np.asarray(model.buffers[tensor.buffer].data, np.uint8)
        kind = tensor_type(model, index)
        bits = {"INT8": 8, "INT4": 4, "INT2": 2}[kind]
        fields = [(data >> shift) & (2**bits - 1) for shift in range(0, 8, bits)]
        fields = np.stack(fields, -1).ravel()[: np.prod(tensor.shape)].astype(int)
        codes = np.where(fields >= 2 ** (bits - 1), fields - 2**bits, fields)
        name = graph.tensors[operator.outputs[0]].name.decode()
        yield code, name, kind, codes.reshape(tensor.shape)


def layers_by_rule(student, rules):
    """(call, rule) of each use of a layer: rules are in the order of the graph."""
    calls = [c for c in read_graph(student).calls if is_searchable(c.layer)]
    return zip(calls, [r for r in rules if r["regex"] != ".*"], strict=True)


def assert_codes_are_trained(student, rules, content):
    """Every kernel of the file holds `kernel_quantizer.codes`.

    Signs turn where the factor of BatchNormalization is negative. A channel whose codes
    have a common divisor is stored without it; one of a layer that is scaled by its
    largest weight, times what makes that 127.
    """
    consumers = read_graph(student).consumers()
    stored = list(stored_kernels(content))
    for call, rule in layers_by_rule(student, rules):
        (found,) = [o for o in stored if re.search(rule["regex"], o[1] + ";")]
        assert found[0] == rule["operation"]
        codes = call.layer.kernel_quantizer.codes(call.layer.kernel).astype(int)
        depthwise = call.kind == "DepthwiseConv2D"
        channels = np.prod(codes.shape[-2:] if depthwise else codes.shape[-1:])
        signs = np.ones(channels)
        reader = consumers[call.outputs[0]][0]
        if reader.kind == "BatchNormalization":
            signs = np.sign(np.asarray(reader.layer.gamma))
        wanted = codes.reshape(-1, channels) * signs
        have = keras_layout(call.kind, found[3], codes.shape).reshape(-1, channels)
        if rule["algorithm_key"] == "min_max_uniform_quantize":
            largest = np.abs(wanted).max(axis=0)
            wanted = wanted * 127 / np.where(largest, largest, 1)
        elif "TENSORWISE" not in str(rule):
            divisors = np.gcd.reduce(np.abs(wanted).astype(int), axis=0)
            wanted = wanted / np.where(divisors, divisors, 1)
        np.testing.assert_array_equal(have, wanted)


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize(
    ("net", "bits", "activations", "types"),
    [
        ("plain", (4, 8), "static", {"INT4"}),
        ("residual", (3, 8), "static", {"INT4"}),
        ("residual", (2, 8), "dynamic", {"INT4", "INT2"}),
        ("inverted", (2, 8), "static", {"INT4", "INT8"}),
        ("branches", (2, 3), "float", {"INT4", "INT8"}),
        ("plain", (6, 8), "dynamic", {"INT8"}),
        ("moving", (4, 8), "dynamic", {"INT4"}),
        ("shared", (3, 4), "float", {"INT4"}),
    ],
)
def test_the_tool_stores_the_trained_codes(tool, net, bits, activations, types):
    zero_channels = activations != "static"
    student, policy, x = make(net, bits, zero_channels)
    content = float_tflite(student)
    rules = recipe(student, policy, activations, content)
    made = quantized(tool, content, rules, named(student, x))
    assert {kind for _, _, kind, _ in stored_kernels(made)} == types
    assert_codes_are_trained(student, rules, made)
    if activations == "float":  # kernels only: what the float file computes
        assert difference_of_files(content, made, named(student, x)) < 1e-5
    else:
        assert difference(student, made, x) < 0.03


def difference_of_files(a, b, inputs):
    pairs = zip(predict(a, inputs), predict(b, inputs), strict=True)
    return max(float(np.abs(u - v).max() / np.ptp(u)) for u, v in pairs)


def test_codes_are_stored_as_they_are_where_steps_can_be_seen(tool):
    """Without common divisors and depthwise layers: equal to `codes`."""
    student, policy, x = make("plain", (4, 8))
    content = float_tflite(student)
    rules = recipe(student, policy, float_file=content)
    stored = list(stored_kernels(quantized(tool, content, rules, named(student, x))))
    for name in ("b", "c", "scores"):
        layer = student.get_layer(name)
        codes = layer.kernel_quantizer.codes(layer.kernel)
        (found,) = [o for o in stored if o[3].size == codes.size]
        kind = layer.searchable_kind
        np.testing.assert_array_equal(keras_layout(kind, found[3], codes.shape), codes)


@pytest.mark.quick_rows(5)
@pytest.mark.parametrize("weight_bits", range(2, 9))
@pytest.mark.parametrize("activations", ["static", "dynamic", "float"])
def test_every_weight_width(tool, weight_bits, activations):
    inputs = keras.Input((6, 6, 16), name="image")
    x = L.Conv2D(4, 3, activation="relu", name="a")(inputs)
    model = keras.Model(inputs, L.Dense(6, name="b")(L.Flatten()(x)))
    student, policy, x = make(model, (weight_bits, 8))
    content = float_tflite(student)
    rules = recipe(student, policy, activations, content)
    made = quantized(tool, content, rules, named(student, x))
    assert_codes_are_trained(student, rules, made)
    types = {operator: kind for operator, _, kind, _ in stored_kernels(made)}
    narrow = "INT4" if weight_bits <= 4 else "INT8"
    dense = "INT2" if (weight_bits, activations) == (2, "dynamic") else narrow
    assert types == {"CONV_2D": narrow, "FULLY_CONNECTED": dense}
    assert difference(student, made, x) < 0.03


def test_float_file_computes_the_student_but_for_activations():
    student, _, x = make("branches", (4, 8), zero_channels=True)
    assert difference(student, float_tflite(student), x) < 0.01


def test_rules_are_anchored_and_each_matches_one_operator():
    student, policy, _ = make("branches", (2, 8))
    content = float_tflite(student)
    model = read_model(content)
    graph = model.subgraphs[0]
    written = [
        graph.tensors[o.outputs[0]].name.decode() + ";"
        for o in graph.operators
        if model.operatorCodes[o.opcodeIndex].builtinCode in CODES
    ]
    rules = [r for r in recipe(student, policy, "float", content) if r["regex"] != ".*"]
    matches = [[w for w in written if re.search(r["regex"], w)] for r in rules]
    assert all(len(m) == 1 for m in matches)
    assert len({m[0] for m in matches}) == len(rules) == len(policy)
    assert all(r["regex"][0] == "^" and r["regex"][-2:] == ";$" for r in rules)


def test_names_do_not_depend_on_when_the_file_is_made():
    student, policy, _ = make("plain", (4, 8))
    rules = recipe(student, policy)
    assert rules == recipe(student, policy, float_file=float_tflite(student))


def test_layers_with_equal_kernels_keep_their_bits():
    inputs = keras.Input((6, 6, 16), name="image")
    x = L.Conv2D(16, 1, name="one", kernel_initializer="ones")(inputs)
    x = L.Conv2D(16, 1, name="two", kernel_initializer="ones")(x)
    model = keras.Model(inputs, L.Conv2D(8, 3, name="last")(x))
    student, policy, _ = make(model, {"one": (4, 8), "two": (8, 8), "last": (4, 8)})
    rules = recipe(student, policy)[-3:]
    stored = [r["op_config"]["weight_tensor_config"]["num_bits"] for r in rules]
    assert stored == [4, 8, 4]
    assert "one" in rules[0]["regex"]
    assert "two" in rules[1]["regex"]


def test_student_is_not_changed():
    student, policy, x = make("residual", (4, 8))
    before = [w.copy() for w in student.get_weights()], np.asarray(student(x))
    recipe(student, policy)
    for a, b in zip(before[0], student.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(before[1], np.asarray(student(x)))


def test_what_the_tool_cannot_express_is_listed():
    bits = {"stem": (4, 8), "a_up": (4, 3), "a_dw": (4, 8), "a_down": (3, 8)}
    bits |= {"b_up": (4, 8), "b_dw": (2, 8), "b_down": (8, 2), "top": (4, 8)}
    student, policy, _ = make("inverted", {**bits, "scores": (4, 8)})
    with pytest.raises(ExportError) as caught:
        recipe(student, policy)
    message = str(caught.value)
    assert "a_up W4/A3, b_down W8/A2 (activations of other than 8 bits)" in message
    assert "a_dw W4/A8 (depthwise kernels" in message
    assert "export_tflite" in message
    assert "activations='float'" not in message  # would not help
    assert "stem" not in message
    assert "b_dw" not in message


def test_a_channel_of_zeros_needs_other_activations():
    student, policy, _ = make("plain", (4, 8), zero_channels=True)
    with pytest.raises(ExportError, match=r"a W4/A8 \(a channel of zeros"):
        recipe(student, policy)
    with pytest.raises(ExportError, match=r"activations='float' for kernels only"):
        recipe(student, policy)
    assert recipe(student, policy, "dynamic")


def test_a_step_that_cannot_be_seen_is_refused():
    assert is_recovered(np.array([0, 3, 1]))
    assert is_recovered(np.array([2, 4, 0]))  # the same as 1, 2, 0 of twice the step
    assert is_recovered(np.array([0, 0]))
    assert not is_recovered(np.array([3, 7]))
    inputs = keras.Input((6, 6, 1), name="image")
    model = keras.Model(inputs, L.Conv2D(6, 2, name="few")(inputs))
    student, policy, _ = make(model, (7, 8))
    with pytest.raises(ExportError, match=r"few W7/A8 \(a channel without two codes"):
        recipe(student, policy)


@pytest.mark.parametrize("stored", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("activations", ["static", "dynamic", "float"])
def test_the_tool_knows_the_widths_we_say_it_does(
    tool, plain_file, stored, activations
):
    rule = {"regex": "^a;$", "operation": "CONV_2D"}
    rule["algorithm_key"] = "dequantized_weight_recovery"
    rules = [{**rule, "op_config": op_config(stored, activations)}]
    content = bytearray(plain_file)
    if stored in (4, 8) or (stored, activations) == (2, "dynamic"):
        tool.Quantizer(content, rules)
    else:
        with pytest.raises(ValueError, match="Unsupported op"):
            tool.Quantizer(content, rules)


def test_recipe_file_is_read_by_the_tool(tool, tmp_path):
    student, policy, _ = make("plain", (4, 8))
    content = float_tflite(student)
    rules = recipe(student, policy, float_file=content)
    path = write_recipe(tmp_path / "new" / "recipe.json", rules)
    assert json.loads(path.read_text()) == rules
    assert [p.name for p in path.parent.iterdir()] == ["recipe.json"]
    read = tool.Quantizer(bytearray(content), str(path)).get_quantization_recipe()
    assert [r["regex"] for r in read] == [r["regex"] for r in rules]
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="must be writable"):
        write_recipe(tmp_path / "file" / "recipe.json", rules)


def test_bad_input_is_explained():
    student, policy, _ = make("plain", (4, 8))
    with pytest.raises(ExportError, match=r"'statik'.*Did you mean 'static'"):
        recipe(student, policy, "statik")
    other = BitwidthPolicy(policy.model, {**policy.layers, "d": (4, 4)})
    with pytest.raises(ExportError, match=r"unknown=.'d'"):
        recipe(student, other)
    other = BitwidthPolicy(policy.model, {**policy.layers, "b": (5, 8)})
    with pytest.raises(ExportError, match=r"b=\(5, 8\) in the policy, \(4, 8\)"):
        recipe(student, other)
    with pytest.raises(ExportError, match="one input quantizer"):
        float_tflite(NETS["plain"]())
    with pytest.raises(ExportError, match="functional"):
        recipe(keras.Model(), policy)
    wrong = float_tflite(make("residual", (4, 8))[0])
    with pytest.raises(ExportError, match=r"float_file without those of layers=.'a'"):
        recipe(student, policy, float_file=wrong)
