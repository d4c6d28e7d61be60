"""Turn the graph of a quantized Keras model into TFLite operators.

Every tensor keeps the step it was trained with. The b-bit grid comes from where zero is
put: the largest code is stored as 127, so that saturation clamps above, and a fused
ReLU, or a second integer operator, clamps below.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from gmpq_tf.graph import Call, Graph, read_graph
from gmpq_tf.transform.placement import is_fusable_relu, is_fused

from .errors import ExportError
from .flatbuffer import FileBuilder, Quantization, pack_int4
from .fold import AVERAGE_CODE, Folded, affine, fold_layer, normalization

SAME, VALID = schema.Padding.SAME, schema.Padding.VALID
FUSED = {"linear": 0, "relu": 1, "relu6": 3}  # schema.ActivationFunctionType
ALIASES = (
    "Dropout SpatialDropout2D GaussianNoise GaussianDropout ActivityRegularization "
    "Identity InputLayer"
).split()
VIEWS = (
    "MaxPooling2D GlobalMaxPooling2D Flatten Reshape Permute ZeroPadding2D Cropping2D"
).split()
# Pixels scaled to -1..1 lie on halves of their grid, where every kernel rounds its way.
INPUT_SLACK = 0.25
MOVING = frozenset([*ALIASES, *VIEWS])


@dataclass(frozen=True)
class Grid:
    """An activation grid: `value = code * step`, `low <= code <= high`."""

    step: float
    low: int
    high: int

    @property
    def zero_point(self) -> int:
        """Stored integer of zero that makes int8 saturate at the largest code."""
        return 127 - self.high

    def has_room_below(self, zero_point: int) -> bool:
        """Whether int8 reaches below the smallest code."""
        return zero_point + self.low > -128

    def holds(self, other: Grid) -> bool:
        """Whether every value of `other` is on this grid."""
        same = self.step == other.step
        return same and self.low <= other.low and other.high <= self.high


@dataclass(frozen=True)
class Value:
    """A tensor of the file: on a grid in int8, or float where `grid` is None."""

    tensor: int
    grid: Grid | None
    zero_point: int = 0


@dataclass(frozen=True)
class Kernel:
    """Where the kernel of a layer went.

    Args:
        layer: the Keras layer.
        name: its name in the graph.
        tensor: number of the kernel's tensor in the file.
        folded: how stored codes relate to trained ones.
    """

    layer: Any
    name: str
    tensor: int
    folded: Folded


@dataclass(frozen=True)
class Check:
    """A tensor of the file that must equal one of the Keras graph, put on a grid.

    Args:
        name: layer that makes it.
        kind: of that layer.
        index: number of the Keras tensor.
        value: the tensor of the file.
        slack: steps by which rounding inside the operator may move a value before it
            is rounded to the grid.
        reader: the only call that reads it so; None: every call does.
    """

    name: str
    kind: str
    index: int
    value: Value
    slack: float = 0.0
    reader: Call | None = None


@dataclass(frozen=True)
class Fused:
    """What is computed inside one kernel: BatchNormalization, activation, result."""

    batch_norm: Any | None
    activation: str
    index: int


@dataclass(frozen=True)
class Lowered:
    """A whole model: the file's content, and what to verify in it."""

    content: bytes
    graph: Graph
    kernels: list[Kernel]
    checks: list[Check]
    input_grids: list[Grid]
    output_steps: list[float]


def lower(
    student: Any,
    storage: str = "fast",
    input_type: str = "float32",
    output_type: str = "float32",
    metadata: dict | None = None,
) -> Lowered:
    """Write a quantized model as TFLite operators.

    Args:
        student: calibrated model from `gmpq_tf.quantize_model`.
        storage: "fast": kernels in INT8; "packed": those of 4 bits or fewer in INT4.
        input_type: "float32", "int8" or "uint8".
        output_type: likewise.
        metadata: stored in the file as JSON.

    Raises:
        ExportError: a layer that has no integer counterpart.
    """
    lowering = Lowering(student, storage)
    inputs = lowering.add_inputs(input_type)
    for call in lowering.graph.calls:
        lowering.add_call(call, output_type)
    outputs = lowering.add_outputs(output_type)
    content = lowering.file.finish(inputs, outputs, metadata or {})
    return Lowered(
        content,
        lowering.graph,
        lowering.kernels,
        lowering.checks,
        lowering.input_grids,
        lowering.output_steps,
    )


class Lowering:
    """The file being written, and which of its tensors stands for which of Keras."""

    def __init__(self, student: Any, storage: str) -> None:
        self.student = student
        self.packed = storage == "packed"
        self.graph = read_graph(student)
        self.consumers = self.graph.consumers()
        self.producers = self.graph.producers()
        self.file = FileBuilder()
        self.values: dict[int, Value] = {}
        self.done: set[int] = set()  # calls computed inside the kernel of another
        self.kernels: list[Kernel] = []
        self.checks: list[Check] = []
        self.input_grids: list[Grid] = []
        self.output_steps: list[float] = []
        self.stands_for: dict[int, int] = {}  # made-up tensor -> the Keras one
        self._moved: dict[tuple[Value, Grid, bool], Value] = {}

    def add_inputs(self, input_type: str) -> dict[str, int]:
        """Add the model's inputs; returns name -> tensor."""
        named = {}
        pairs = zip(self.graph.inputs, self.graph.input_names, strict=True)
        for index, name in pairs:
            grid = self.next_grid(index, name)
            self.input_grids.append(grid)
            named[name] = self._add_input(index, name, grid, input_type)
        return named

    def _add_input(self, index: int, name: str, grid: Grid, input_type: str) -> int:
        shape = self.shape(index, name)
        if input_type == "int8":
            tensor = self.file.tensor(name, shape, "INT8", quantization(grid))
            value = self.clamp_below(Value(tensor, grid, grid.zero_point), shape, name)
            self.values[index] = value
            return tensor
        if input_type == "uint8":
            shifted = quantization(grid, grid.zero_point + 128)
            tensor = self.file.tensor(name, shape, "UINT8", shifted)
        else:
            tensor = self.file.tensor(name, shape, "FLOAT32")
        self.emit(
            "QUANTIZE",
            [tensor],
            index,
            grid,
            name=f"{name}_codes",
            slack=INPUT_SLACK,
        )
        return tensor

    def add_outputs(self, output_type: str) -> dict[str, int]:
        """Convert the model's outputs to the type wanted; returns name -> tensor."""
        named: dict[str, int] = {}
        for index in self.graph.outputs:
            name = self._output_name(index, named)
            value = self.values[index]
            self.output_steps.append(value.grid.step if value.grid else 1 / 256)
            named[name] = self._add_output(index, name, value, output_type)
        return named

    def _add_output(self, index: int, name: str, value: Value, output_type: str) -> int:
        if value.grid is None or output_type == "int8":
            return value.tensor
        shape = self.shape(index, name)
        if output_type == "float32":
            tensor = self.file.tensor(name, shape, "FLOAT32")
            self.file.operator("DEQUANTIZE", [value.tensor], [tensor])
            return tensor
        shifted = quantization(value.grid, value.zero_point + 128)
        tensor = self.file.tensor(name, shape, "UINT8", shifted)
        self.file.operator("QUANTIZE", [value.tensor], [tensor])
        return tensor

    def _output_name(self, index: int, taken: dict) -> str:
        """Name of the layer whose values an output holds."""
        call = self.producers.get(index)
        while call is not None and call.kind == "InputQuantizer":
            index = call.inputs[0]
            call = self.producers.get(index)
        if call is None:
            name = self.graph.input_names[self.graph.inputs.index(index)]
        else:
            name = call.name
        return name if name not in taken else f"{name}_{len(taken)}"

    def add_call(self, call: Call, output_type: str) -> None:
        """Add what one layer computes, with what is fused into it."""
        if id(call) in self.done:
            return
        if {call.kind, call.activation} & FINAL:
            lower_final(self, call, output_type)
        elif is_fusable_relu(call):
            lower_relu(self, call)
        elif call.kind in LOWERINGS:
            LOWERINGS[call.kind](self, call)
        else:
            raise ExportError(
                "Every layer must have an integer TFLite counterpart. "
                f"Received: layer={call.name!r} of kind {call.kind}"
                f"{_activation_note(call)}. Kinds that export: "
                f"{', '.join(sorted({*LOWERINGS, 'ReLU', 'Softmax'}))}. Replace the "
                "layer before quantize_model."
            )

    def input(self, call: Call, position: int = 0) -> Value:
        """The tensor a layer reads; it must be on a grid."""
        value = self.values[call.inputs[position]]
        if value.grid is None:
            raise ExportError(
                "Softmax and sigmoid can only end a model, where float is no loss. "
                f"Received: layer={call.name!r} that reads one. Take it out, or "
                "replace it by a ReLU."
            )
        return value

    def shape(self, index: int, name: str) -> list[int | None]:
        """Shape of a Keras tensor; all but the batch must be known."""
        shape = list(self.graph.shapes[index])
        if None in shape[1:]:
            raise ExportError(
                "Every size but the batch must be fixed. "
                f"Received: shape={tuple(shape)} at {name!r}. Build the model with "
                "keras.Input(shape=(height, width, channels))."
            )
        return [None, *shape[1:]]

    def fuse(self, call: Call) -> Fused:
        """Follow BatchNormalization and ReLU as far as the kernel of `call` reaches."""
        batch_norm, index = None, call.outputs[0]
        activation = call.activation if call.activation in FUSED else "linear"
        current = call
        while len(self.consumers[index]) == 1 and index not in self.graph.outputs:
            reader = self.consumers[index][0]
            if not is_fused(current, reader, self.producers):
                break
            if reader.kind == "BatchNormalization":
                batch_norm = reader.layer
            else:
                activation = relu_name(reader)
            self.done.add(id(reader))
            current, index = reader, reader.outputs[0]
        return Fused(batch_norm, activation, index)

    def next_grid(self, index: int, name: str) -> Grid:
        """The grid that the graph puts a tensor on, at its next quantizer."""
        for reader in self.consumers[index]:
            if reader.kind == "InputQuantizer":
                return grid_of(reader.layer)
            if getattr(reader.layer, "input_quantizer", None) is not None:
                return grid_of(reader.layer.input_quantizer)
            if reader.kind in MOVING:
                return self.next_grid(reader.outputs[0], name)
        raise ExportError(
            "Every stored tensor needs a quantizer after it. "
            f"Received: none after {name!r}. Build the model with "
            "gmpq_tf.quantize_model, and export it as it is."
        )

    def emit(
        self,
        code: str,
        inputs: list[int],
        index: int,
        grid: Grid,
        options: Any = None,
        name: str | None = None,
        clamped: bool = False,
        version: int | None = None,
        slack: float = 0.0,
    ) -> Value:
        """Add an operator that writes a Keras tensor on a grid.

        Args:
            code: operator.
            inputs: tensors it reads.
            index: Keras tensor that it computes.
            grid: of the result.
            options: of the operator.
            name: of the result; None: that of the layer.
            clamped: nothing below the smallest code can come out.
            version: of the operator; None: that of its 8-bit form.
            slack: as in `Check`.
        """
        name = name or self.producers[index].name
        shape = self.shape(index, name)
        tensor = self.file.tensor(name, shape, "INT8", quantization(grid))
        self.file.operator(code, inputs, [tensor], options, version)
        value = Value(tensor, grid, grid.zero_point)
        if not clamped:
            value = self.clamp_below(value, shape, name)
        self.values[index] = value
        call = self.producers.get(index)
        kind = call.kind if call else "InputLayer"
        index = self.stands_for.get(index, index)
        self.checks.append(Check(name, kind, index, value, slack))
        return value

    def clamp_below(self, value: Value, shape: list, name: str) -> Value:
        """Saturate at the smallest code: a QUANTIZE that only moves the zero point."""
        assert value.grid is not None
        if not value.grid.has_room_below(value.zero_point):
            return value
        return self.shift(value, -128 - value.grid.low, shape, f"{name}_clamped")

    def shift(self, value: Value, zero_point: int, shape: list, name: str) -> Value:
        """The same codes around another zero point (exact)."""
        assert value.grid is not None
        kind = quantization(value.grid, zero_point)
        tensor = self.file.tensor(name, shape, "INT8", kind)
        self.file.operator("QUANTIZE", [value.tensor], [tensor])
        return Value(tensor, value.grid, zero_point)

    def move(self, call: Call, grid: Grid, private: bool) -> Value:
        """Put what a call reads on another grid, with one integer operator.

        Args:
            call: the call.
            grid: wanted.
            private: no kernel that needs equal steps reads the result.
        """
        value, index = self.input(call), call.inputs[0]
        assert value.grid is not None
        if grid.holds(value.grid):
            return value
        key = (value, grid, private)
        if key not in self._moved:
            name = f"{call.name}_input" if private else call.name
            self._moved[key] = self._requantize(value, grid, index, name, private)
        moved = self._moved[key]
        nested = math.log2(grid.step / value.grid.step).is_integer()
        slack = 0.0 if nested else 0.15  # kernels round the ratio to eight bits or so
        check = Check(call.name, "InputQuantizer", index, moved, slack, call)
        self.checks.append(check)
        return moved

    def _requantize(
        self, value: Value, grid: Grid, index: int, name: str, private: bool
    ) -> Value:
        assert value.grid is not None
        shape = self.shape(index, name)
        step = grid.step
        if private and step > value.grid.step:
            # Built-in kernels round twice, which lifts codes just below a half when the
            # ratio is a power of two. One unit in the last place makes the first
            # rounding exact.
            step = float(np.nextafter(np.float32(step), np.float32(np.inf)))
        meaning = Quantization((step,), grid.zero_point)
        tensor = self.file.tensor(name, shape, "INT8", meaning)
        self.file.operator("QUANTIZE", [value.tensor], [tensor])
        moved = Value(tensor, grid, grid.zero_point)
        if value.grid.low * value.grid.step < (grid.low - 0.5) * grid.step:
            moved = self.clamp_below(moved, shape, name)
        return moved


def quantization(grid: Grid, zero_point: int | None = None) -> Quantization:
    """How a tensor on a grid is described in the file."""
    return Quantization(
        (grid.step,), grid.zero_point if zero_point is None else zero_point
    )


def grid_of(quantizer: Any) -> Grid:
    """Grid of an `InputQuantizer`."""
    low, high = quantizer.codes()
    return Grid(quantizer.step(), low, high)


def relu_name(call: Call) -> str:
    """`"linear"`, `"relu"` or `"relu6"`."""
    if call.kind == "Activation":
        return call.activation
    six = call.kind == "Relu6" or getattr(call.layer, "max_value", None) is not None
    return "relu6" if six else "relu"


def lower_layer(lowering: Lowering, call: Call) -> None:
    """Convolution or dense layer, BatchNormalization and ReLU in one kernel."""
    layer = call.layer
    check_layer(call)
    source = lowering.move(call, grid_of(layer.input_quantizer), private=True)
    assert source.grid is not None
    fused = lowering.fuse(call)
    target = lowering.next_grid(fused.index, call.name)
    bits = layer.kernel_quantizer.bits[0]
    int4 = lowering.packed and bits <= 4 and call.kind != "DepthwiseConv2D"
    folded = fold_layer(
        layer, fused.batch_norm, source.grid.step, target.step, 7 if int4 else 127
    )
    codes, axis = stored_layout(call.kind, folded.codes)
    scale = folded.scale
    if call.kind == "Dense" and np.all(scale == scale[0]):
        scale = scale[:1]
    meaning = Quantization(tuple(scale), 0, axis)
    kernel = add_kernel(lowering.file, f"{call.name}_kernel", codes, meaning, int4)
    bias = lowering.file.constant(
        f"{call.name}_bias",
        folded.bias,
        Quantization(tuple(scale * source.grid.step)),
    )
    lowering.kernels.append(Kernel(layer, call.name, kernel, folded))
    code, options = KERNELS[call.kind](layer, lowering.graph.shapes[call.inputs[0]])
    options.fusedActivationFunction = FUSED[fused.activation]
    lowering.emit(
        code,
        [source.tensor, kernel, bias],
        fused.index,
        target,
        options,
        call.name,
        clamped=clamps(fused.activation, target),
        version=kernel_version(code, options, layer, int4),
        # INT4 convolutions run in built-in kernels, which round twice.
        slack=folded.slack(source.grid.step, target.step) * (3 if int4 else 1),
    )


def clamps(activation: str, grid: Grid) -> bool:
    """Whether a fused ReLU leaves nothing below the smallest code."""
    return activation != "linear" and grid.low <= 0


def add_kernel(
    file: FileBuilder, name: str, codes: np.ndarray, meaning: Quantization, int4: bool
) -> int:
    """Add a kernel, in INT4 (two codes a byte) or INT8."""
    if int4:
        return file.tensor(name, codes.shape, "INT4", meaning, pack_int4(codes))
    return file.constant(name, codes, meaning)


def stored_layout(kind: str, kernel: np.ndarray) -> tuple[np.ndarray, int]:
    """Kernel in the layout of TFLite, and its axis of output channels."""
    if kind == "Dense":
        return kernel.T, 0
    if kind == "Conv2D":
        return kernel.transpose(3, 0, 1, 2), 0
    height, width = kernel.shape[:2]
    return kernel.reshape(1, height, width, -1), 3


def keras_layout(kind: str, kernel: np.ndarray, shape: tuple) -> np.ndarray:
    """Inverse of `stored_layout`, for a Keras kernel of the given shape."""
    if kind == "Dense":
        return kernel.T
    if kind == "Conv2D":
        return kernel.transpose(1, 2, 3, 0)
    return kernel.reshape(shape)


def check_layer(call: Call) -> None:
    """Refuse layers that have no quantizers, or a layout TFLite lacks."""
    layer = call.layer
    quantizers = [getattr(layer, f"{k}_quantizer", None) for k in ("input", "kernel")]
    if None in quantizers or any(len(q.bits) != 1 for q in quantizers if q):
        raise ExportError(
            "Every convolution and dense layer must have one input quantizer and one "
            f"kernel quantizer. Received: layer={call.name!r} "
            f"({type(layer).__name__}). Export what gmpq_tf.quantize_model returned."
        )
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        raise ExportError(
            "Channels must be last. "
            f"Received: layer={call.name!r} with data_format={layer.data_format!r}. "
            "Build the model with data_format='channels_last'."
        )
    if call.activation not in FUSED:
        raise ExportError(
            "An activation inside a layer must be linear, relu or relu6. "
            f"Received: layer={call.name!r} with activation={call.activation!r}. "
            "Export what gmpq_tf.quantize_model returned, which splits it off."
        )


def kernel_version(code: str, options: Any, layer: Any, int4: bool) -> int | None:
    """Operator version that a runtime must know to run a layer."""
    if int4:
        return {"CONV_2D": 7, "DEPTHWISE_CONV_2D": 7, "FULLY_CONNECTED": 10}[code]
    if getattr(layer, "groups", 1) > 1 and code == "CONV_2D":
        return 6
    return 5 if getattr(options, "keepNumDims", False) else None


def conv_options(layer: Any, shape: tuple) -> tuple[str, Any]:
    """Operator and options of a Conv2D."""
    return "CONV_2D", window(schema.Conv2DOptionsT(), layer)


def depthwise_options(layer: Any, shape: tuple) -> tuple[str, Any]:
    """Operator and options of a DepthwiseConv2D."""
    options = window(schema.DepthwiseConv2DOptionsT(), layer)
    options.depthMultiplier = layer.depth_multiplier
    return "DEPTHWISE_CONV_2D", options


def dense_options(layer: Any, shape: tuple) -> tuple[str, Any]:
    """Operator and options of a Dense."""
    options = schema.FullyConnectedOptionsT()
    options.keepNumDims = len(shape) > 2
    return "FULLY_CONNECTED", options


KERNELS: dict[str, Callable[[Any, tuple], tuple[str, Any]]] = {
    "Conv2D": conv_options,
    "DepthwiseConv2D": depthwise_options,
    "Dense": dense_options,
}


def window(options: Any, layer: Any) -> Any:
    """Copy padding, strides and dilation of a convolution."""
    options.padding = SAME if layer.padding == "same" else VALID
    options.strideH, options.strideW = layer.strides
    options.dilationHFactor, options.dilationWFactor = layer.dilation_rate
    return options


def lower_quantizer(lowering: Lowering, call: Call) -> None:
    """A quantizer on a tensor: nothing where it is on that grid already."""
    lowering.values[call.outputs[0]] = lowering.move(
        call, grid_of(call.layer), private=False
    )


def lower_alias(lowering: Lowering, call: Call) -> None:
    """A layer that does nothing in inference."""
    lowering.values[call.outputs[0]] = lowering.input(call)


def lower_relu(lowering: Lowering, call: Call) -> None:
    """A ReLU on its own: one integer operator on the grid of its input."""
    source, name = lowering.input(call), relu_name(call)
    assert source.grid is not None
    grid = Grid(source.grid.step, max(source.grid.low, 0), source.grid.high)
    six = name == "relu6" and grid.high * grid.step > 6
    if name == "linear" or (source.grid.low >= 0 and not six):
        return lower_alias(lowering, call)
    view(lowering, call, name.upper(), [], None)
    value = lowering.values[call.outputs[0]]
    lowering.values[call.outputs[0]] = Value(value.tensor, grid, value.zero_point)


def view(
    lowering: Lowering, call: Call, code: str, extra: list[int], options: Any
) -> None:
    """An operator whose result stays on the grid of its input."""
    source, index = lowering.input(call), call.outputs[0]
    assert source.grid is not None
    kind = quantization(source.grid, source.zero_point)
    shape = lowering.shape(index, call.name)
    tensor = lowering.file.tensor(call.name, shape, "INT8", kind)
    lowering.file.operator(code, [source.tensor, *extra], [tensor], options)
    lowering.values[index] = Value(tensor, source.grid, source.zero_point)


def integers(lowering: Lowering, call: Call, what: str, values: Any) -> int:
    """A constant int32 operand."""
    array = np.asarray(values, np.int32)
    return lowering.file.constant(f"{call.name}_{what}", array)


def lower_reshape(lowering: Lowering, call: Call) -> None:
    """Flatten, Reshape: the batch is left open."""
    shape = [-1, *lowering.shape(call.outputs[0], call.name)[1:]]
    options = schema.ReshapeOptionsT()
    options.newShape = shape
    view(lowering, call, "RESHAPE", [integers(lowering, call, "shape", shape)], options)


def lower_permute(lowering: Lowering, call: Call) -> None:
    """Permute: axes are counted from 1 in Keras, the batch left out."""
    order = integers(lowering, call, "order", [0, *call.layer.dims])
    view(lowering, call, "TRANSPOSE", [order], schema.TransposeOptionsT())


def lower_max_pool(lowering: Lowering, call: Call) -> None:
    """MaxPooling2D; a global one has a window as large as the image."""
    layer = call.layer
    options = schema.Pool2DOptionsT()
    if call.kind == "GlobalMaxPooling2D":
        size = stride = tuple(lowering.graph.shapes[call.inputs[0]][1:3])
        options.padding = VALID
    else:
        size, stride = layer.pool_size, layer.strides
        options.padding = SAME if layer.padding == "same" else VALID
    options.filterHeight, options.filterWidth = size
    options.strideH, options.strideW = stride
    if len(lowering.graph.shapes[call.outputs[0]]) == 4:
        return view(lowering, call, "MAX_POOL_2D", [], options)
    flat(
        lowering, call, lambda inner: view(lowering, inner, "MAX_POOL_2D", [], options)
    )


def flat(lowering: Lowering, call: Call, compute: Callable[[Call], None]) -> None:
    """Compute [batch, 1, 1, channels], then drop the two axes."""
    graph, (batch, channels) = lowering.graph, lowering.graph.shapes[call.outputs[0]]
    middle = graph.new_tensor((batch, 1, 1, channels), "float32")
    inner = Call(call.layer, call.name, (), {}, call.inputs, (middle,))
    lowering.producers[middle] = inner
    lowering.stands_for[middle] = call.outputs[0]
    lowering.consumers[middle] = []
    compute(inner)
    outer = Call(call.layer, f"{call.name}_flat", (), {}, (middle,), call.outputs)
    lower_reshape(lowering, outer)


def lower_padding(lowering: Lowering, call: Call) -> None:
    """ZeroPadding2D."""
    pads = np.array([(0, 0), *call.layer.padding, (0, 0)])
    paddings = integers(lowering, call, "paddings", pads)
    view(lowering, call, "PAD", [paddings], schema.PadOptionsT())


def lower_cropping(lowering: Lowering, call: Call) -> None:
    """Cropping2D."""
    (top, _), (left, _) = call.layer.cropping
    size = [-1, *lowering.shape(call.outputs[0], call.name)[1:]]
    operands = [
        integers(lowering, call, "begin", [0, top, left, 0]),
        integers(lowering, call, "size", size),
    ]
    view(lowering, call, "SLICE", operands, schema.SliceOptionsT())


def lower_upsampling(lowering: Lowering, call: Call) -> None:
    """UpSampling2D by repetition."""
    if call.layer.interpolation != "nearest":
        raise ExportError(
            "UpSampling2D must repeat pixels. "
            f"Received: layer={call.name!r} with "
            f"interpolation={call.layer.interpolation!r}. Use 'nearest'."
        )
    size = lowering.shape(call.outputs[0], call.name)[1:3]
    view(
        lowering,
        call,
        "RESIZE_NEAREST_NEIGHBOR",
        [integers(lowering, call, "size", size)],
        schema.ResizeNearestNeighborOptionsT(),
    )


def lower_average(lowering: Lowering, call: Call) -> None:
    """Average pooling as a depthwise convolution, which is exact.

    MEAN and AVERAGE_POOL_2D round halves away from zero, and MEAN rounds the zero point
    on its own: 2 to 19 % of their codes are one step off. Here the codes of the kernel
    are 7 and its step 1 / (7 n). Where the steps nest, so that halves occur, a bias of
    one unit (less than the distance of the next value) lifts them upwards.
    """
    shape = lowering.graph.shapes[call.inputs[0]]
    size, stride = average_window(call, shape)
    if not covers_only_image(call, shape, size, stride):
        return lower_padded_average(lowering, call)
    grid = lowering.next_grid(call.outputs[0], call.name)
    if len(lowering.graph.shapes[call.outputs[0]]) == 4:
        return add_average(lowering, call, size, stride, grid)
    flat(lowering, call, lambda inner: add_average(lowering, inner, size, stride, grid))


def average_window(call: Call, shape: tuple) -> tuple[tuple, tuple]:
    """Size and stride of an average pool; a global one covers the image."""
    if call.kind == "GlobalAveragePooling2D":
        return tuple(shape[1:3]), tuple(shape[1:3])
    return tuple(call.layer.pool_size), tuple(call.layer.strides)


def covers_only_image(call: Call, shape: tuple, size: tuple, stride: tuple) -> bool:
    """Whether no window reaches into padding, which an average leaves out."""
    if getattr(call.layer, "padding", "valid") == "valid":
        return True
    steps = [math.ceil(n / s) - 1 for n, s in zip(shape[1:3], stride, strict=True)]
    ends = [t * s + k for t, s, k in zip(steps, stride, size, strict=True)]
    return all(end <= n for end, n in zip(ends, shape[1:3], strict=True))


def add_average(
    lowering: Lowering, call: Call, size: tuple, stride: tuple, grid: Grid
) -> None:
    """The depthwise convolution of `lower_average`."""
    source, channels = lowering.input(call), lowering.graph.shapes[call.inputs[0]][3]
    assert source.grid is not None
    scale = np.full(channels, 1 / (AVERAGE_CODE * math.prod(size)))
    codes = np.full((1, *size, channels), AVERAGE_CODE, np.int8)
    options = schema.DepthwiseConv2DOptionsT()
    options.padding, options.depthMultiplier = VALID, 1
    options.strideH, options.strideW = stride
    nested = math.log2(grid.step / source.grid.step).is_integer()
    bias = np.full(channels, int(nested), np.int32)
    add_depthwise(lowering, call, codes, scale, bias, grid, options)


def add_depthwise(
    lowering: Lowering,
    call: Call,
    codes: np.ndarray,
    scale: np.ndarray,
    bias: np.ndarray,
    grid: Grid,
    options: Any,
) -> None:
    """A depthwise convolution that stands for another layer."""
    source = lowering.input(call)
    assert source.grid is not None
    file, name = lowering.file, call.name
    meaning = Quantization(tuple(scale), 0, 3)
    int4 = lowering.packed and np.abs(codes).max() <= 7
    kernel = add_kernel(file, f"{name}_kernel", codes, meaning, int4)
    unit = Quantization(tuple(scale * source.grid.step))
    operands = [source.tensor, kernel, file.constant(f"{name}_bias", bias, unit)]
    nonnegative = source.grid.low >= 0 and (codes >= 0).all() and (bias >= 0).all()
    lowering.emit(
        "DEPTHWISE_CONV_2D",
        operands,
        call.outputs[0],
        grid,
        options,
        name,
        clamped=bool(nonnegative) and grid.low <= 0,
        version=7 if int4 else None,
        slack=float(scale.max())
        * source.grid.step
        / grid.step
        / 2
        * (3 if int4 else 1),
    )


def lower_padded_average(lowering: Lowering, call: Call) -> None:
    """Average pooling that reaches into padding, whose halves round away from zero."""
    options = schema.Pool2DOptionsT()
    options.padding = SAME
    options.filterHeight, options.filterWidth = call.layer.pool_size
    options.strideH, options.strideW = call.layer.strides
    view(lowering, call, "AVERAGE_POOL_2D", [], options)
    index = call.outputs[0]
    lowering.checks.append(
        Check(call.name, call.kind, index, lowering.values[index], slack=0.5)
    )


def lower_affine(lowering: Lowering, call: Call) -> None:
    """BatchNormalization on its own, or Rescaling: a 1x1 depthwise convolution."""
    index = call.outputs[0]
    grid = lowering.next_grid(index, call.name)
    if len(lowering.graph.shapes[index]) == 4:
        return add_affine(lowering, call, grid)
    if len(lowering.graph.shapes[index]) != 2:
        raise ExportError(
            "Scaling needs [batch, channels] or [batch, height, width, channels]. "
            f"Received: layer={call.name!r} of shape {lowering.graph.shapes[index]}. "
            "Reshape before it."
        )
    graph, (batch, channels) = lowering.graph, lowering.graph.shapes[index]
    source = graph.new_tensor((batch, 1, 1, channels), "float32")
    lift = Call(call.layer, f"{call.name}_lift", (), {}, call.inputs, (source,))
    lower_reshape(lowering, lift)
    lifted = Call(call.layer, call.name, (), {}, (source,), call.outputs)
    flat(lowering, lifted, lambda inner: add_affine(lowering, inner, grid))


def add_affine(lowering: Lowering, call: Call, grid: Grid) -> None:
    """The depthwise convolution of `lower_affine`."""
    channels = lowering.graph.shapes[call.inputs[0]][-1]
    if call.kind == "Rescaling":
        factor = np.broadcast_to(np.asarray(call.layer.scale, "float64"), channels)
        offset = np.broadcast_to(np.asarray(call.layer.offset, "float64"), channels)
    else:
        factor, offset = normalization(call.layer, channels)
    source = lowering.input(call)
    assert source.grid is not None
    codes, scale, bias = affine(factor, offset, source.grid.step)
    options = schema.DepthwiseConv2DOptionsT()
    options.padding, options.depthMultiplier = VALID, 1
    options.strideH = options.strideW = 1
    add_depthwise(
        lowering, call, codes.reshape(1, 1, 1, -1), scale, bias, grid, options
    )


def lower_add(lowering: Lowering, call: Call) -> None:
    """Add of two tensors, with the ReLU after it."""
    if len(call.inputs) != 2:
        raise ExportError(
            "An addition must have two operands, because TFLite rounds after each. "
            f"Received: layer={call.name!r} with {len(call.inputs)}. Write it as "
            "additions of two before quantize_model."
        )
    operands = [lowering.input(call, i) for i in range(2)]
    fused = lowering.fuse(call)
    grid = lowering.next_grid(fused.index, call.name)
    options = schema.AddOptionsT()
    options.fusedActivationFunction = FUSED[fused.activation]
    nonnegative = all(v.grid is not None and v.grid.low >= 0 for v in operands)
    clamped = clamps(fused.activation, grid) or (nonnegative and grid.low <= 0)
    tensors = [v.tensor for v in operands]
    lowering.emit(
        "ADD", tensors, fused.index, grid, options, call.name, clamped=clamped
    )


def lower_concatenate(lowering: Lowering, call: Call) -> None:
    """Concatenation of tensors that are on one grid."""
    operands = [lowering.input(call, i) for i in range(len(call.inputs))]
    first = max(operands, key=lambda v: _span(v.grid))
    assert first.grid is not None
    tensors = []
    for value, index in zip(operands, call.inputs, strict=True):
        assert value.grid is not None
        if value.grid.step != first.grid.step:
            raise ExportError(
                "The operands of a concatenation must share one grid. "
                f"Received: layer={call.name!r} with steps {first.grid.step} and "
                f"{value.grid.step}. Export what gmpq_tf.quantize_model returned."
            )
        if value.zero_point != first.zero_point:
            shape = lowering.shape(index, call.name)
            value = lowering.shift(
                value, first.zero_point, shape, f"{call.name}_operand"
            )
        tensors.append(value.tensor)
    options = schema.ConcatenationOptionsT()
    options.axis = call.layer.axis
    index = call.outputs[0]
    kind = quantization(first.grid, first.zero_point)
    shape = lowering.shape(index, call.name)
    tensor = lowering.file.tensor(call.name, shape, "INT8", kind)
    lowering.file.operator("CONCATENATION", tensors, [tensor], options)
    lowering.values[index] = Value(tensor, first.grid, first.zero_point)


def lower_final(lowering: Lowering, call: Call, output_type: str) -> None:
    """Softmax or sigmoid that ends a model: in float, unless integers are wanted."""
    source, index = lowering.input(call), call.outputs[0]
    assert source.grid is not None
    shape = lowering.shape(index, call.name)
    softmax = "softmax" in (call.activation, call.kind.lower())
    code = "SOFTMAX" if softmax else "LOGISTIC"
    options: Any = schema.SoftmaxOptionsT() if softmax else None
    if softmax:
        options.beta = 1.0
    if output_type == "float32":
        logits = lowering.file.tensor(f"{call.name}_logits", shape, "FLOAT32")
        lowering.file.operator("DEQUANTIZE", [source.tensor], [logits])
        tensor = lowering.file.tensor(call.name, shape, "FLOAT32")
        lowering.file.operator(code, [logits], [tensor], options)
        lowering.values[index] = Value(tensor, None)
        return
    grid = Grid(1 / 256, 0, 255)  # the only one these kernels write
    tensor = lowering.file.tensor(call.name, shape, "INT8", quantization(grid))
    lowering.file.operator(code, [source.tensor], [tensor], options)
    lowering.values[index] = Value(tensor, grid, grid.zero_point)


FINAL = frozenset(["softmax", "sigmoid", "Softmax", "Sigmoid"])
LOWERINGS: dict[str, Callable[[Lowering, Call], None]] = {
    "Conv2D": lower_layer,
    "DepthwiseConv2D": lower_layer,
    "Dense": lower_layer,
    "InputQuantizer": lower_quantizer,
    "BatchNormalization": lower_affine,
    "Rescaling": lower_affine,
    "Add": lower_add,
    "Concatenate": lower_concatenate,
    "MaxPooling2D": lower_max_pool,
    "GlobalMaxPooling2D": lower_max_pool,
    "AveragePooling2D": lower_average,
    "GlobalAveragePooling2D": lower_average,
    "Flatten": lower_reshape,
    "Reshape": lower_reshape,
    "Permute": lower_permute,
    "ZeroPadding2D": lower_padding,
    "Cropping2D": lower_cropping,
    "UpSampling2D": lower_upsampling,
    **dict.fromkeys(ALIASES, lower_alias),
}


def _activation_note(call: Call) -> str:
    return f" (activation {call.activation!r})" if call.kind == "Activation" else ""


def _span(grid: Grid | None) -> int:
    return 0 if grid is None else grid.high - grid.low
