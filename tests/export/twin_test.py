"""The integer twin against the runtime: not one stored integer may differ."""

from dataclasses import replace

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

import gmpq_tf as gmpq
from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.integers.grids import Quantization
from gmpq_tf.export.tflite import integer_twin
from gmpq_tf.export.tflite.flatbuffer import PACKING, FileBuilder
from gmpq_tf.export.tflite.flatbuffer.writer import VERSIONS
from gmpq_tf.export.tflite.lowering import lower
from gmpq_tf.export.tflite.runtime import TFLiteModel
from gmpq_tf.export.tflite.twin import compare
from gmpq_tf.export.tflite.twin.compare import compare_twin
from gmpq_tf.export.tflite.twin.operator import read_program
from gmpq_tf.export.tflite.twin.program import OPERATORS, ProgramLayer
from gmpq_tf.models import MODELS
from tests.export import nets
from tests.export.random_models import random_images, random_model, random_policy

L = keras.layers
BATCH = 24
ACTIVATIONS = (0, 1, 3)  # none, ReLU, ReLU6
SAME, VALID = schema.Padding.SAME, schema.Padding.VALID


class Draw:
    """A file of one operator, with random integers and grids."""

    def __init__(self, seed):
        self.random = np.random.default_rng(seed)
        self.file, self.inputs, self.arrays = FileBuilder(), {}, []

    def pick(self, *choices):
        return choices[self.random.integers(len(choices))]

    def step(self, low=-6, high=2):
        """Half of them powers of two, so that results fall midway between two."""
        power = self.random.uniform(low, high)
        return float(np.float32(2.0 ** (round(power) if self.pick(0, 1) else power)))

    def grid(self, step=None, zero=None):
        zero = int(self.random.integers(-128, 128)) if zero is None else zero
        return Quantization((step or self.step(),), zero)

    def read(self, shape, grid, kind="INT8"):
        """An input of the file, and integers for it, the outermost among them."""
        name = f"x{len(self.inputs)}"
        tensor = self.file.tensor(name, [None, *shape], kind, grid)
        self.inputs[name] = tensor
        low, high = (0, 256) if kind == "UINT8" else (-128, 128)
        array = self.random.integers(low, high, (BATCH, *shape))
        array.flat[:2] = low, high - 1
        self.arrays.append(array.astype(kind.lower()))
        return tensor

    def floats(self, shape, largest):
        self.inputs["x0"] = tensor = self.file.tensor("x0", [None, *shape], "FLOAT32")
        array = self.random.normal(0, largest, (BATCH, *shape))
        self.arrays.append(array.astype("float32"))
        return tensor

    def write(self, code, inputs, shape, grid, options=None, kind="INT8", version=None):
        tensor = self.file.tensor("y", [None, *shape], kind, grid)
        self.file.operator(code, inputs, [tensor], options, version)
        return tensor

    def finish(self, tensor):
        return self.file.finish(self.inputs, {"y": tensor}, {}), self.arrays

    # Kernels, biases and the grid of a result.

    def linear(self, code, x, grid, weights, channels, axis, shape, options, size=None):
        """`weights` on steps of their own, a bias, and a result that partly fits."""
        weights = self.random.integers(-127, 128, weights)
        weights = weights if self.pick(0, 1) else np.clip(weights, -3, 3)
        kind = self.pick("INT8", "INT4") if code == "FULLY_CONNECTED" else "INT8"
        if kind == "INT4":
            weights = np.clip(weights, -7, 7)
        scale = np.array([self.step(-9, -4) for _ in range(channels)], np.float32)
        kernel = self.file.constant(
            "w", weights.astype("int8"), Quantization(tuple(scale.tolist()), 0, axis)
        )
        if kind == "INT4":
            kernel = self.file.tensor(
                "w4",
                weights.shape,
                kind,
                Quantization(tuple(scale.tolist()), 0, axis),
                PACKING[kind](weights.astype("int8")),
            )
        spread = 100 * np.sqrt(np.square(weights).sum() / channels) + 1
        if self.random.random() < 0.2:  # sums beyond the integers of float32
            spread = 2**27
        bias = self.random.normal(0, spread, channels).round().astype("int32")
        unit = Quantization(tuple((scale * np.float32(grid.scale[0])).tolist()))
        operands = [x, kernel, self.file.constant(None, bias, unit)]
        if size is not None:
            operands = [self.file.integers(size), kernel, x, operands[2]]
        # From sums that are all zero or saturate to some that hardly move.
        target = grid.scale[0] * scale.max() * max(spread / self.pick(8, 60, 400), 0.01)
        target = 2.0 ** round(np.log2(target)) if self.pick(0, 1) else target
        result = self.grid(float(np.float32(target)))
        options.fusedActivationFunction = self.pick(*ACTIVATIONS)
        versions = {"FULLY_CONNECTED": 12, "TRANSPOSE_CONV": 4}
        version = versions.get(code, 6 if axis == 0 else None)
        y = self.write(code, operands, shape, result, options, version=version)
        return self.finish(y)

    def window(self, options):
        options.padding = self.pick(SAME, VALID)
        options.strideH, options.strideW = self.pick((1, 1), (2, 2), (1, 2))
        return options


def result_size(size, window, options, dilation=(1, 1)):
    strides = (options.strideH, options.strideW)
    if options.padding == SAME:
        return [-(-n // s) for n, s in zip(size, strides, strict=True)]
    reach = [(k - 1) * d + 1 for k, d in zip(window, dilation, strict=True)]
    return [(n - r) // s + 1 for n, r, s in zip(size, reach, strides, strict=True)]


def conv(draw):
    groups, filters = draw.pick((1, 5), (2, 6))
    options, size = draw.window(schema.Conv2DOptionsT()), draw.pick((1, 1), (3, 2))
    options.dilationHFactor = options.dilationWFactor = 1
    grid, channels = draw.grid(), draw.pick(4, 8)
    x = draw.read((7, 6, channels), grid)
    shape = [*result_size((7, 6), size, options), filters]
    weights = (filters, *size, channels // groups)
    return draw.linear("CONV_2D", x, grid, weights, filters, 0, shape, options)


def depthwise(draw):
    options, size = (
        draw.window(schema.DepthwiseConv2DOptionsT()),
        draw.pick((3, 3), (1, 2)),
    )
    options.depthMultiplier = draw.pick(1, 2)
    dilation = draw.pick(1, 2) if options.strideH == options.strideW == 1 else 1
    options.dilationHFactor = options.dilationWFactor = dilation
    grid, channels = draw.grid(), 5
    x = draw.read((7, 6, channels), grid)
    outputs = channels * options.depthMultiplier
    shape = [*result_size((7, 6), size, options, (dilation,) * 2), outputs]
    weights = (1, *size, outputs)
    return draw.linear(
        "DEPTHWISE_CONV_2D", x, grid, weights, outputs, 3, shape, options
    )


def dense(draw):
    grid, inputs, outputs = draw.grid(), draw.pick(8, 40), draw.pick(1, 7)
    options = schema.FullyConnectedOptionsT()
    rows = draw.pick((), (3,))
    options.keepNumDims = bool(rows)
    x = draw.read((*rows, inputs), grid)
    return draw.linear(
        "FULLY_CONNECTED",
        x,
        grid,
        (outputs, inputs),
        outputs,
        0,
        [*rows, outputs],
        options,
    )


def transposed(draw):
    grid, filters, size = draw.grid(), 5, draw.pick((3, 3), (2, 3))
    options = draw.window(schema.TransposeConvOptionsT())
    strides = (options.strideH, options.strideW)
    pairs = list(zip((4, 5), size, strides, strict=True))
    shape = [(n - 1) * s + k for n, k, s in pairs]
    if options.padding == SAME:
        shape = [n * s for n, _, s in pairs]
    x = draw.read((4, 5, 6), grid)
    weights = (filters, *size, 6)
    return draw.linear(
        "TRANSPOSE_CONV",
        x,
        grid,
        weights,
        filters,
        0,
        [*shape, filters],
        options,
        [BATCH, *shape, filters],
    )


def add(draw):
    step, shape = draw.step(), (6, 5)
    grids = [draw.grid(step * draw.step(-3, 3)) for _ in range(2)]
    operands = [draw.read(shape, grid) for grid in grids]
    options = schema.AddOptionsT()
    options.fusedActivationFunction = draw.pick(*ACTIVATIONS)
    y = draw.write("ADD", operands, shape, draw.grid(step), options)
    return draw.finish(y)


def multiply(draw):
    grids = [draw.grid(), draw.grid()]
    operands = [draw.read((3, 4, 5), grids[0])]
    operands.append(draw.read(draw.pick((3, 4, 5), (1, 1, 5)), grids[1]))
    product = grids[0].scale[0] * grids[1].scale[0]
    target = draw.grid(product * draw.step(0, 12))
    options = schema.MulOptionsT()
    return draw.finish(draw.write("MUL", operands, (3, 4, 5), target, options))


def quantize(draw):
    """From another grid, near or far, or another type, or from floats."""
    kind, target = draw.pick("grid", "far", "UINT8", "to UINT8", "float"), draw.grid()
    step = target.scale[0]
    if kind == "float":
        x = draw.floats((40,), 100 * step)
        draw.arrays[0][:, :8] = (np.arange(8) - 3.5) * step  # midway
        return draw.finish(draw.write("QUANTIZE", [x], (40,), target))
    if kind == "to UINT8":
        x = draw.read((40,), target)
        moved = Quantization(target.scale, target.zero_point + 128)
        return draw.finish(draw.write("QUANTIZE", [x], (40,), moved, kind="UINT8"))
    if kind == "UINT8":
        x = draw.read(
            (40,), Quantization(target.scale, target.zero_point + 128), "UINT8"
        )
    else:
        low, high = (-7.9, 6.9) if kind == "grid" else draw.pick((-14, -9), (8, 12))
        x = draw.read((40,), draw.grid(step * draw.step(low, high)))
    return draw.finish(draw.write("QUANTIZE", [x], (40,), target))


def moved(code, shape, after, extra=(), options=None):
    """An operator whose result is on the grid of its input."""

    def make(draw):
        grid = draw.grid()
        x = draw.read(shape, grid)
        operands = [x, *(draw.file.integers(value) for value in extra)]
        return draw.finish(draw.write(code, operands, after, grid, options))

    return make


def made(kind, **values):
    options = kind()
    for name, value in values.items():
        setattr(options, name, value)
    return options


def average(draw):
    options = made(schema.Pool2DOptionsT, filterHeight=3, filterWidth=2)
    draw.window(options).padding = SAME
    grid = Quantization((0.5,), 9)
    x = draw.read((7, 6, 5), grid, "UINT8")
    shape = [*result_size((7, 6), (3, 2), options), 5]
    y = draw.write("AVERAGE_POOL_2D", [x], shape, grid, options, kind="UINT8")
    return draw.finish(y)


def largest(draw):
    options = draw.window(made(schema.Pool2DOptionsT, filterHeight=3, filterWidth=2))
    grid = draw.grid()
    x = draw.read((7, 6, 5), grid)
    shape = [*result_size((7, 6), (3, 2), options), 5]
    return draw.finish(draw.write("MAX_POOL_2D", [x], shape, grid, options))


def concatenate(draw):
    grid, axis = draw.grid(), draw.pick(1, 3, -1)
    operands = [draw.read((4, 3, 5), grid) for _ in range(3)]
    shape = [4, 3, 5]
    shape[axis - 1 if axis > 0 else axis] *= 3
    options = made(schema.ConcatenationOptionsT, axis=axis)
    return draw.finish(draw.write("CONCATENATION", operands, shape, grid, options))


def gather(draw):
    grid, places = draw.grid(), draw.random.integers(0, 6, 9)
    x = draw.read((6, 3), grid)
    operands = [x, draw.file.integers(places)]
    options = made(schema.GatherOptionsT, axis=1)
    return draw.finish(draw.write("GATHER", operands, (9, 3), grid, options))


def table(draw):
    """CAST, ADD and GATHER as activations by table use them."""
    x = draw.read((6, 3), draw.grid())
    rows = draw.random.integers(-128, 128, (3, 256)).astype("int8")
    values = draw.file.constant("table", rows.ravel(), draw.grid())
    wide, place = (draw.file.tensor(None, [None, 6, 3], "INT32") for _ in range(2))
    kinds = {
        "inDataType": schema.TensorType.INT8,
        "outDataType": schema.TensorType.INT32,
    }
    draw.file.operator("CAST", [x], [wide], made(schema.CastOptionsT, **kinds))
    starts = draw.file.integers(128 + 256 * np.arange(3))
    draw.file.operator("ADD", [wide, starts], [place], schema.AddOptionsT())
    options = schema.GatherOptionsT()
    return draw.finish(draw.write("GATHER", [values, place], (6, 3), None, options))


def relu(code):
    def make(draw):
        grid = draw.grid()
        x = draw.read((40,), grid)
        return draw.finish(draw.write(code, [x], (40,), grid))

    return make


def to_unit(code):
    """LOGISTIC, SOFTMAX: on steps of 1/256."""

    def make(draw):
        x = draw.read((12,), draw.grid(draw.step(-8, 0)))
        options = made(schema.SoftmaxOptionsT, beta=1.0) if code == "SOFTMAX" else None
        y = draw.write(code, [x], (12,), Quantization((1 / 256,), -128), options)
        return draw.finish(y)

    return make


def dequantize(draw):
    x = draw.read((40,), draw.grid())
    return draw.finish(draw.write("DEQUANTIZE", [x], (40,), None, kind="FLOAT32"))


CASES = {
    "ADD": add,
    "AVERAGE_POOL_2D": average,
    "CAST": table,
    "CONCATENATION": concatenate,
    "CONV_2D": conv,
    "DEPTHWISE_CONV_2D": depthwise,
    "DEQUANTIZE": dequantize,
    "FULLY_CONNECTED": dense,
    "GATHER": gather,
    "LOGISTIC": to_unit("LOGISTIC"),
    "MAX_POOL_2D": largest,
    "MIRROR_PAD": moved(
        "MIRROR_PAD",
        (4, 3, 2),
        (6, 5, 2),
        [[(0, 0), (1, 1), (1, 1), (0, 0)]],
        made(schema.MirrorPadOptionsT, mode=schema.MirrorPadMode.SYMMETRIC),
    ),
    "MUL": multiply,
    "PAD": moved("PAD", (4, 3, 2), (7, 4, 2), [[(0, 0), (1, 2), (0, 1), (0, 0)]]),
    "QUANTIZE": quantize,
    "RELU": relu("RELU"),
    "RELU6": relu("RELU6"),
    "RESHAPE": moved("RESHAPE", (4, 3, 2), (6, 4), [[-1, 6, 4]]),
    "RESIZE_NEAREST_NEIGHBOR": moved(
        "RESIZE_NEAREST_NEIGHBOR",
        (3, 4, 2),
        (6, 12, 2),
        [[6, 12]],
        schema.ResizeNearestNeighborOptionsT(),
    ),
    "SLICE": moved("SLICE", (4, 5, 2), (2, 4, 2), [[0, 1, 1, 0], [-1, 2, 4, 2]]),
    "SOFTMAX": to_unit("SOFTMAX"),
    "SPACE_TO_DEPTH": moved(
        "SPACE_TO_DEPTH",
        (4, 6, 3),
        (2, 3, 12),
        options=made(schema.SpaceToDepthOptionsT, blockSize=2),
    ),
    "TRANSPOSE": moved("TRANSPOSE", (4, 3, 2), (2, 4, 3), [[0, 3, 1, 2]]),
    "TRANSPOSE_CONV": transposed,
}
COMPUTED = "ADD CONV_2D DEPTHWISE_CONV_2D FULLY_CONNECTED MUL QUANTIZE TRANSPOSE_CONV"


def test_every_operator_that_the_library_writes_has_a_row_and_a_case():
    assert {*OPERATORS} == {*CASES} == {*VERSIONS}


@pytest.mark.parametrize("code", CASES)
def test_an_operator_computes_what_the_runtime_does(code):
    """Every integer of files of random grids, among them ties and saturated ones."""
    for seed in range(40 if code in COMPUTED.split() else 8):
        content, arrays = CASES[code](Draw(seed))
        have = TFLiteModel(content).stored(arrays)[0]
        want = np.asarray(ProgramLayer(read_program(content))(arrays)[0])
        np.testing.assert_array_equal(have, want.astype(have.dtype), f"seed {seed}")


@pytest.mark.parametrize("zero", [-7, 8])
@pytest.mark.parametrize("step", [4.0, 12.0, 6 / 2.5, 6 / 7.5])
@pytest.mark.parametrize("code", ["ADD", "RELU6"])
def test_a_six_midway_between_two_integers(code, step, zero):
    draw = Draw(0)
    grid = Quantization((step,), zero)
    operands = [draw.read((40,), grid) for _ in range(2 if code == "ADD" else 1)]
    options = schema.AddOptionsT() if code == "ADD" else None
    if options:
        options.fusedActivationFunction = 3
    content, arrays = draw.finish(draw.write(code, operands, (40,), grid, options))
    assert compare_twin(content, arrays).off == 0


def test_sums_beyond_float32_are_exact():
    """127 * 127 * 4000 in one sum, of all signs, and biases that end it oddly."""
    draw = Draw(0)
    x = draw.read((4000,), Quantization((1.0,), 0))
    draw.arrays[0][:] = draw.pick(127, -127)
    draw.arrays[0][:, : BATCH * 100] = draw.random.integers(-127, 128, (BATCH, 2400))
    weights = np.full((3, 4000), 127, "int8")
    meaning = Quantization((2.0**-20,) * 3)
    kernel = draw.file.constant("w", weights, Quantization((2.0**-20,) * 3))
    bias = draw.file.constant(None, np.array([1, -3, 2**24 + 1], "int32"), meaning)
    options = schema.FullyConnectedOptionsT()
    grid = Quantization((1.0,), 0)
    y = draw.write("FULLY_CONNECTED", [x, kernel, bias], (3,), grid, options)
    content, arrays = draw.finish(y)
    assert compare_twin(content, arrays).off == 0


def refused(code, options=None, step=0.5):
    draw = Draw(0)
    operands = [draw.read((40,), draw.grid(s)) for s in (0.5, step)]
    y = draw.file.tensor("made", [None, 40], "INT8", draw.grid(0.5))
    draw.file.operator(code, operands, [y], options, version=1)
    return draw.finish(y)[0]


def test_unknown_operators_are_refused_by_name():
    with pytest.raises(ExportError, match="Received: MAXIMUM that makes 'y'"):
        ProgramLayer(read_program(refused("MAXIMUM")))


@pytest.mark.parametrize("seed", range(12))
def test_additions_that_xnnpack_leaves_to_built_in_kernels(seed):
    """Steps of one operand below 1/1024 of the result's, or 256 times and more."""
    draw = Draw(seed)
    step, far = draw.step(), draw.step(-13, -10.1)
    grids = [draw.grid(step * draw.step(-1, 1)), draw.grid(step * far)]
    operands = [draw.read((400,), grid) for grid in grids[:: draw.pick(1, -1)]]
    options = schema.AddOptionsT()
    options.fusedActivationFunction = draw.pick(*ACTIVATIONS)
    y = draw.write("ADD", operands, (400,), draw.grid(step), options)
    content, arrays = draw.finish(y)
    assert compare_twin(content, arrays).off == 0


def test_what_no_kernel_computes_is_refused():
    with pytest.raises(ExportError, match="ADD that makes 'y', whose operands"):
        options = schema.AddOptionsT()
        ProgramLayer(read_program(refused("ADD", options, 0.5 * 2.0**21)))
    options = schema.AddOptionsT()
    options.fusedActivationFunction = schema.ActivationFunctionType.TANH
    with pytest.raises(ExportError, match="fused activation"):
        ProgramLayer(read_program(refused("ADD", options)))


def test_layers_kept_in_float_are_left_to_the_runtime():
    """What goes in and what comes out of them is compared all the same."""
    draw = Draw(0)
    x = draw.read((40,), draw.grid(0.02))
    numbers, twice, most = (
        draw.file.tensor(name, [None, 40], "FLOAT32") for name in ("n", "t", "m")
    )
    draw.file.operator("DEQUANTIZE", [x], [numbers], None)
    draw.file.operator("ADD", [numbers, numbers], [twice], schema.AddOptionsT())
    draw.file.operator("MAXIMUM", [twice, numbers], [most], None, version=1)
    content, arrays = draw.finish(
        draw.write("QUANTIZE", [most], (40,), draw.grid(0.07))
    )
    found = compare_twin(content, arrays)
    assert (found.tensors, found.codes) == (1, 40 * BATCH)
    assert (found.off, found.unknown) == (0, ())
    with pytest.raises(ExportError, match="ADD that makes 't', in float"):
        ProgramLayer(read_program(content))


# Whole models.


def check(student, x, storage="fast", **options):
    """Every integer of the file, and the floats of its outputs."""
    arrays = list(x.values()) if isinstance(x, dict) else keras.tree.flatten(x)
    lowered = lower(student, storage, **options)
    found = compare_twin(lowered.content, arrays)
    assert (found.off, found.names) == (0, ())
    assert found.codes > 1000
    have = TFLiteModel(lowered.content).predict(arrays)
    want = integer_twin(student, storage).predict(x, verbose=0)
    for one, other in zip(
        keras.tree.flatten(want), keras.tree.flatten(have), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize("batch", [1, 3, 40])
def test_files_of_a_fixed_batch(batch):
    """Also a global mean, whose sums are rows of images and channels."""
    student, x = random_student(203)
    content = lower(student, batch=batch).content
    whole = compare_twin(lower(student).content, [x])
    found = compare_twin(content, [x])
    assert (found.off, found.names) == (0, ())
    assert found.codes * len(x) == whole.codes * batch


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize("storage", ["fast", "packed", "smallest"])
@pytest.mark.parametrize("seed", range(200, 204))
def test_random_models(seed, storage):
    check(*random_student(seed), storage)


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["fast", "packed", "smallest"])
@pytest.mark.parametrize("seed", range(204, 500))
def test_more_random_models(seed, storage):
    check(*random_student(seed), storage)


def random_student(seed):
    model = random_model(seed)
    student = gmpq.quantize_model(model, random_policy(model, seed))
    gmpq.calibrate(student, [(random_images(model, 32, seed + 1000),)])
    return student, random_images(model, 8, seed + 2000)


@pytest.mark.quick_rows(6)
@pytest.mark.parametrize("bits", [(8, 8), (4, 8), (2, 3)])
@pytest.mark.parametrize("name", nets.NETS)
def test_nets(name, bits):
    model = nets.randomize(nets.NETS[name](), 1)
    student = gmpq.quantize_model(model, gmpq.BitwidthPolicy.uniform(model, *bits))
    x = random_images(model, 16, 3)
    gmpq.calibrate(student, [(x,)])
    check(student, x)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [(8, 8), (4, 8)])
def test_deep_networks_are_the_same_to_the_last_integer(bits):
    """MobileNetV2, where Keras in float and the file part ways."""
    keras.utils.set_random_seed(1)
    model = MODELS["mobilenet_v2"]((32, 32, 3), 10, alpha=0.35)
    student = gmpq.quantize_model(model, gmpq.BitwidthPolicy.uniform(model, *bits))
    x = random_images(model, 16, 3)
    gmpq.calibrate(student, [(x,)])
    check(student, x)


def test_inputs_and_outputs_are_the_students():
    model = nets.shared()
    scores, box = model.outputs
    model = keras.Model(
        {t.name: t for t in model.inputs}, {"box": box, "scores": scores}
    )
    student = gmpq.quantize_model(model, gmpq.BitwidthPolicy.uniform(model, 4, 4))
    x = {t.name: np.ones((5, *t.shape[1:]), "float32") for t in model.inputs}
    gmpq.calibrate(student, [(x,)])
    twin = integer_twin(student)
    assert {*twin(x)} == {"box", "scores"}
    assert twin.output_names == student.output_names
    assert {t.name for t in twin.inputs} == {*x}
    assert not twin.trainable_weights


def test_a_transposed_convolution_takes_any_batch():
    inputs = keras.Input((4, 4, 3))
    x = L.Conv2DTranspose(8, 3, 2)(inputs)
    model = keras.Model(inputs, L.Dense(3)(L.Flatten()(x)))
    student = gmpq.quantize_model(model, gmpq.BitwidthPolicy.uniform(model, 8, 8))
    x = random_images(model, 7, 3)
    gmpq.calibrate(student, [(x,)])
    check(student, x)


def test_a_difference_is_named(monkeypatch):
    """What compares must see: the twin of a file whose first kernel is another."""
    student, x = random_student(200)
    content = lower(student).content
    program = read_program(content)
    place = next(i for i, o in enumerate(program.operators) if o.code == "CONV_2D")
    op = program.operators[place]
    kernel = replace(op.inputs[1], data=-op.inputs[1].data)
    wrong = replace(op, inputs=(op.inputs[0], kernel, op.inputs[2]))
    operators = (*program.operators[:place], wrong, *program.operators[place + 1 :])
    changed = replace(program, operators=operators)
    monkeypatch.setattr(compare, "read_program", lambda content: changed)
    found = compare.compare_twin(content, [x])
    name, code, share = found.names[0]
    assert (name, code) == (op.output.name, "CONV_2D")
    assert share > 0.1
    assert 0 < found.off < found.codes
