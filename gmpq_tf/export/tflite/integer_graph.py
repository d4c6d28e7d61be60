"""The integer graph of a file: its tensors, and the Keras tensors they stand for.

Every tensor keeps the step it was trained with. Operators are added by the modules
that `lowering` lists.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.integers.fold import Folded
from gmpq_tf.export.integers.grids import Grid, Value, grid_of, quantization
from gmpq_tf.export.tflite.flatbuffer import FileBuilder, Quantization
from gmpq_tf.export.tflite.fusion import FUSED, Fused, relu_name
from gmpq_tf.graph import Call, Graph, read_graph
from gmpq_tf.kernel_kinds import KERNEL_KINDS
from gmpq_tf.layer_kinds import Role
from gmpq_tf.transform.placement import is_transparent
from gmpq_tf.transform.units import Unit, cap_of, unit_of

# Operations whose files have a fixed batch: LiteRT 2.3 multiplies half of the images
# wrongly in a file that was allocated for one image and then resized (BATCH_MATMUL).
ONE_BATCH = ("Matmul",)
# Bound of input step / output step (product of both input steps for MUL): below it
# every kernel of the runtime computes the operator; above it 32-bit numbers overflow
# silently, or the process crashes.
LARGEST_RATIOS = {"ADD": 2.0**6, "MUL": 2.0**14, "QUANTIZE": 2.0**20}


@dataclass(frozen=True)
class Kernel:
    """Where the kernel of a layer is stored.

    Args:
        layer: the Keras layer.
        name: its name in the graph.
        tensor: number of the kernel's tensor in the file.
        bias: number of the bias's tensor in the file.
        folded: how stored codes relate to trained ones.
        kind: stock Keras class whose layout the stored kernel has.
    """

    layer: Any
    name: str
    tensor: int
    bias: int
    folded: Folded
    kind: str


@dataclass(frozen=True)
class Check:
    """A tensor of the file that must equal a Keras tensor quantized to its grid.

    Args:
        name: name of the layer that makes it.
        kind: class of that layer.
        index: number of the Keras tensor.
        value: the tensor of the file.
        slack: steps by which rounding inside the operator may move a value before it
            is rounded to the grid.
        reader: the only call that reads the tensor on this grid; None: all calls do.
    """

    name: str
    kind: str
    index: int
    value: Value
    slack: float = 0.0
    reader: Call | None = None


class IntegerGraph:
    """The file being written, and the Keras tensors that its tensors stand for."""

    def __init__(
        self,
        student: Any,
        storage: str = "fast",
        scale_codes: bool = False,
        batch: int | None = None,
        runtime: str = "litert",
    ) -> None:
        self.student = student
        self.storage, self.scale_codes = storage, scale_codes
        self.graph = read_graph(student)
        self.runtime = runtime
        # TRANSPOSE_CONV needs the full shape of its result, with the batch size.
        rows = [
            KERNEL_KINDS[c.kind] for c in self.graph.calls if c.kind in KERNEL_KINDS
        ]
        told = any(row.operator == "TRANSPOSE_CONV" for row in rows)
        told |= any(call.kind in ONE_BATCH for call in self.graph.calls)
        default = 1 if told or runtime == "micro" else None
        self.batch = batch or fixed_batch(self.graph) or default
        self.end_grids: dict[int, Grid | None] = {}  # of the file's inputs and outputs
        self.consumers = self.graph.consumers()
        self.producers = self.graph.producers()
        self._units = unit_of(self.graph)
        self.file = FileBuilder()
        self.values: dict[int, Value] = {}
        self.done: set[int] = set()  # ids of calls fused into the kernel of another
        self.kernels: list[Kernel] = []
        self.checks: list[Check] = []
        self.input_grids: list[Grid] = []
        self.output_steps: list[float] = []
        self.stands_for: dict[int, int] = {}  # made-up tensor -> the Keras one
        # Keras tensor of lines -> the made-up one that holds it as images of one row.
        self.images: dict[int, int] = {}
        self._moved: dict[tuple[Value, Grid, bool], Value] = {}

    def input(self, call: Call, position: int = 0) -> Value:
        """The tensor that a call reads at a position.

        Raises:
            ExportError: it is on no grid.
        """
        value = self.value(call.inputs[position])
        if value.grid is None:
            raise ExportError(
                "Softmax and sigmoid can only end a model, where float is no loss. "
                f"Received: layer={call.name!r} that reads one. Take it out, or "
                "replace it by a ReLU."
            )
        return value

    def value(self, index: int) -> Value:
        """The file's tensor for a Keras tensor, reshaped from its image if needed."""
        if index not in self.values and index in self.images:
            image = self.value(self.images[index])
            self.values[index] = self._reshaped(image, index)
        return self.values[index]

    def as_image(self, call: Call, position: int) -> int:
        """Number of a stand-in that holds a call's input as images of one row."""
        index = call.inputs[position]
        if index not in self.images:
            value = self.input(call, position)
            made = self.stand_in(index, image_shape(self.graph.shapes[index]))
            self.values[made] = self._reshaped(value, made)
            self.images[index] = made
        return self.images[index]

    def stand_in(self, index: int, shape: tuple) -> int:
        """Number of a new tensor of another shape that stands for a Keras tensor."""
        made = self.graph.new_tensor(shape, "float32")
        if index in self.producers:
            self.producers[made] = self.producers[index]
        self.consumers[made] = self.consumers[index]
        self.stands_for[made] = self.stands_for.get(index, index)
        return made

    def _reshaped(self, value: Value, index: int) -> Value:
        """Adds a RESHAPE of a tensor to the shape of Keras tensor `index`."""
        name = self.producers[index].name if index in self.producers else "input"
        shape = constant_shape(self.shape(index, name))
        options = schema.ReshapeOptionsT()
        options.newShape = shape
        tensor = self.file.tensor(None, self.shape(index, name), "INT8")
        # Exactly the same quantization: XNNPACK's RESHAPE cannot requantize.
        self.file.tensors[tensor].quantization = self.file.tensors[
            value.tensor
        ].quantization
        operands = [value.tensor, self.file.integers(shape)]
        self.file.operator("RESHAPE", operands, [tensor], options)
        return replace(value, tensor=tensor)

    def shape(self, index: int, name: str) -> list[int | None]:
        """Shape of a Keras tensor in the file; None stands for an open batch.

        Raises:
            ExportError: a size other than the batch is not known.
        """
        shape = list(self.graph.shapes[index])
        if None in shape[1:]:
            raise ExportError(
                "Every size but the batch must be fixed. "
                f"Received: shape={tuple(shape)} at {name!r}. Build the model with "
                "keras.Input(shape=(height, width, channels))."
            )
        return [self.batch, *shape[1:]]

    def rows(self, an_image: int) -> int | None:
        """Size of the first axis, with `an_image` rows per image; None: open batch."""
        return None if self.batch is None else self.batch * an_image

    def unit(self, call: Call) -> Unit:
        """The unit of a call; a call made up by a lowering is a unit of its own."""
        return self._units.get(id(call)) or Unit(call)

    def join(self, unit: Unit) -> None:
        """Registers the unit of a call that a lowering has made up."""
        self._units[id(unit.call)] = unit

    def fuse(self, call: Call) -> Fused:
        """What is fused into the kernel of a call; fused calls are marked as done."""
        unit = self.unit(call)
        self.done.update(id(member) for member in unit.calls[1:])
        activation, cap = (
            call.activation if call.activation in FUSED else "linear",
            None,
        )
        if unit.activation is not None:
            activation, cap = relu_name(unit.activation), cap_of(unit.activation)
        norm = None if unit.batch_norm is None else unit.batch_norm.layer
        return Fused(norm, activation, unit.result, cap if cap != 6 else None)

    def next_grid(self, index: int, name: str) -> Grid:
        """The grid of the next quantizer behind a tensor.

        Raises:
            ExportError: there is none.
        """
        for reader in self.consumers[index]:
            if reader.role is Role.QUANTIZER:
                return grid_of(reader.layer)
            if getattr(reader.layer, "input_quantizer", None) is not None:
                return grid_of(reader.layer.input_quantizer)
            if is_transparent(reader):
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
        cap: float | None = None,
    ) -> Value:
        """Adds an operator that writes a Keras tensor on a grid.

        Args:
            code: name of the operator.
            inputs: tensors that it reads.
            index: number of the Keras tensor that it computes.
            grid: grid of the result.
            options: options of the operator.
            name: name of the result; None: that of the layer.
            clamped: whether results below the grid's smallest code are impossible.
            version: version of the operator; None: that of its 8-bit form.
            slack: as in `Check`.
            cap: as in `Fused`.
        """
        name = name or self.producers[index].name
        self._check_ratio(code, inputs, grid.step, name)
        shape = self.shape(index, name)
        tensor = self.file.tensor(name, shape, "INT8", quantization(grid))
        self.file.operator(code, inputs, [tensor], options, version)
        value = Value(tensor, grid, grid.zero_point)
        if not clamped:
            value = self.clamp_below(value, shape, name)
        if cap is not None:
            value = self.clamp_above(value, cap, shape, name)
        self.values[index] = value
        call = self.producers.get(index)
        kind = call.kind if call else "InputLayer"
        index = self.stands_for.get(index, index)
        self.checks.append(Check(name, kind, index, value, slack))
        return value

    def _check_ratio(
        self, code: str, inputs: list[int], step: float, name: str
    ) -> None:
        """Refuses an operator whose steps would silently overflow the kernels."""
        kinds = [self.file.tensors[i].quantization for i in inputs]
        if code not in LARGEST_RATIOS or None in kinds:
            return
        steps = [kind.scale[0] for kind in kinds]
        ratio = (math.prod(steps) if code == "MUL" else max(steps)) / step
        if ratio >= LARGEST_RATIOS[code]:
            raise ExportError(beyond_kernels(name, ratio))

    def clamp_below(self, value: Value, shape: list, name: str) -> Value:
        """Saturates at the smallest code, by a QUANTIZE that only moves the zero point.

        A grid with fewer than 256 codes leaves room in INT8 below its smallest code.
        With a zero point that puts this code at -128, INT8 saturates there.
        """
        assert value.grid is not None
        if not value.grid.has_room_below(value.zero_point):
            return value
        return self.shift(value, -128 - value.grid.low, shape, f"{name}_clamped")

    def clamp_above(self, value: Value, cap: float, shape: list, name: str) -> Value:
        """Saturates at the code of `cap`, by a QUANTIZE that stores it as 127."""
        assert value.grid is not None
        grid = value.grid
        # Rounded in the same way as by the quantizer that reads the value.
        scaled = np.float32(cap) * (np.float32(1) / np.float32(grid.step))
        code = int(np.floor(scaled + np.float32(0.5)))
        if code >= grid.high:
            return value
        capped = Grid(grid.step, min(grid.low, code), code)
        moved = self.shift(value, capped.zero_point, shape, f"{name}_capped")
        return Value(moved.tensor, capped, moved.zero_point)

    def shift(self, value: Value, zero_point: int, shape: list, name: str) -> Value:
        """Adds a QUANTIZE that moves codes to another zero point, which is exact."""
        assert value.grid is not None
        kind = quantization(value.grid, zero_point)
        tensor = self.file.tensor(name, shape, "INT8", kind)
        self.file.operator("QUANTIZE", [value.tensor], [tensor])
        return Value(tensor, value.grid, zero_point)

    def move(self, call: Call, grid: Grid, private: bool) -> Value:
        """Requantizes the input of a call to another grid, with one integer operator.

        Args:
            call: the call.
            grid: the new grid.
            private: whether no kernel that needs equal steps reads the result.
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
        slack = 0.0 if nested else _moved(value.grid, grid)
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
            # Built-in kernels round twice, which lifts values just below a half if the
            # ratio is a power of two. A step larger by one unit in the last place makes
            # the first rounding exact.
            step = float(np.nextafter(np.float32(step), np.float32(np.inf)))
        self._check_ratio("QUANTIZE", [value.tensor], step, name)
        meaning = Quantization((step,), grid.zero_point)
        tensor = self.file.tensor(name, shape, "INT8", meaning)
        self.file.operator("QUANTIZE", [value.tensor], [tensor])
        moved = Value(tensor, grid, grid.zero_point)
        if value.grid.low * value.grid.step < (grid.low - 0.5) * grid.step:
            moved = self.clamp_below(moved, shape, name)
        return moved


def fixed_batch(graph: Graph) -> int | None:
    """The batch size that a model was built for; None: any."""
    sizes = (graph.shapes[index][0] for index in graph.inputs)
    return next((size for size in sizes if size is not None), None)


def _moved(source: Grid, target: Grid) -> float:
    """Steps by which kernels that round the ratio to eight bits may move a code."""
    ratio = source.step / target.step
    largest = max(abs(source.low), abs(source.high))
    return max(0.15, largest * abs(round(ratio * 256) / 256 - ratio))


def beyond_kernels(name: str, ratio: float) -> str:
    """The message that a layer's results are far smaller than its operands."""
    return (
        "The results of a layer must not be far smaller than what they are made of, or "
        f"the integers of TFLite overflow. Received: layer={name!r}, one unit of whose "
        f"sums is {ratio:.3g} steps of its result. Calibrate on inputs as the model "
        "will see them, look for a dead layer before it, and call "
        "gmpq_tf.snap_biases(student) before the export."
    )


def image_shape(shape: tuple) -> tuple:
    """The shape [batch, 1, pixels, channels] for [batch, ..., channels]."""
    return (shape[0], 1, math.prod(shape[1:-1]), shape[-1])


def constant_shape(shape: Sequence[int | None]) -> list[int]:
    """A shape as a constant of an operator, with -1 for an open size."""
    return [-1 if size is None else size for size in shape]
